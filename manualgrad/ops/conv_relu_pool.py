r"""P(R(C(x, w) + b)) as one Function: σ⁰ of equation (23) over (1), (17), (9) and (4).

Its formulas are those of the three. What is known only of all three together is the place that each δ goes to:
P⁻¹ sends it to one place of a window, and R' of that place is 1, ½ or 0. One byte for each window, its code, says so:

    0 to (P+1)(Q+1) − 1   the maximum is positive (or NaN), and came from that place: δ goes there whole
    ZERO                  nothing is positive, so R makes a tie of zeros and the first place takes it; z is 0 there,
                          and δ goes there times R'(0)
    DEAD                  the same, but z is negative at the first place, where R' is 0: δ goes nowhere

So neither z nor R(z) is kept. With codes held fixed all is linear, as in ``max_pool2d.py``: the derivative of the
spreading of δ picks from the same places, times the same R'.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from manualgrad.cpu import conv_pool_guard as kernels
from manualgrad.cpu import conv_pool_operators
from manualgrad.cpu.pool_index import DEAD, ZERO
from manualgrad.cpu.tensor_checks import is_plain_tensor
from manualgrad.ops import checks, conv2d_geometry, max_pool2d_geometry
from manualgrad.ops.bias import bias_jvp, grad_bias, grad_bias_apply
from manualgrad.ops.conv2d import (
    conv2d_apply,
    conv2d_forward,
    conv2d_grad_input,
    conv2d_grad_input_apply,
    conv2d_grad_weight,
    conv2d_grad_weight_apply,
)
from manualgrad.ops.differentiable import autograd_inactive, differentiable, linear_pair, save, total
from manualgrad.ops.layout import as_non_view, from_nchw, from_oihw, to_nchw, to_oihw
from manualgrad.ops.max_pool2d import max_pool2d_forward
from manualgrad.ops.precision import autocast_lower
from manualgrad.ops.selection import holds, select
from manualgrad.ops.windows import offset_view


@dataclass(frozen=True)
class Geometry:
    """How the kernel lies on x, how the windows lie on z, and R'(0)."""

    convolution: conv2d_geometry.Geometry
    pooling: max_pool2d_geometry.Geometry
    subgradient: float


def geometry_of(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int | tuple[int, int],
    padding: int | tuple[int, int] | str,
    flip_kernel: bool,
    subgradient: float,
) -> Geometry:
    """The arguments of :func:`conv2d_relu_max_pool2d`, looked at; raises ValueError where they do not fit.

    A layer asks the same at every step, and is given what was found before."""
    numbers = stride, padding, flip_kernel, subgradient

    def made() -> Geometry:
        convolving = conv2d_geometry.geometry_of(input, weight, bias, stride, padding, 1, 1, flip_kernel)
        rows_columns = convolving.windows.count(*convolving.size)
        pooling = max_pool2d_geometry.geometry_of((weight.shape[0], *rows_columns), 2, None, 0, 1, False)
        return Geometry(convolving, pooling, subgradient)

    if not (all(t is None or is_plain_tensor(t) for t in (input, weight, bias)) and all(map(_is_exact, numbers))):
        return made()
    key = input.shape[-3:], weight.shape, bias is None or bias.shape, *numbers, *map(type, numbers)
    found = _found.get(key)
    if found is None:
        if len(_found) == MOST_FOUND:
            _found.clear()
        found = _found[key] = made()
    return found


MOST_FOUND = 256  # geometries that are kept
_found: dict[tuple[Any, ...], Geometry] = {}


def _is_exact(argument: object) -> bool:
    """Whether it equals nothing but what means the same: as keys 1, 1.0 and True are one."""
    return type(argument) in (int, float, bool, str) or (
        type(argument) is tuple and all(type(number) is int for number in argument)
    )


# ----------------------------------------------------------------------------------------------- formulas


def relu_pool_forward(z: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """P(R(z)) and the code of each window, both (B, I, J, K), from z (B, H, W, K)."""
    best, number = max_pool2d_forward(z, geometry.pooling)  # eq. (4), of z: R does not change the order
    at_first = holds(offset_view(z, geometry.pooling.windows, 0, 0, geometry.pooling.count), "==", 0).to(number.dtype)
    nothing = holds(best, "<=", 0).to(number.dtype) * (DEAD - at_first)  # DEAD or ZERO; 0 where z is positive
    code = torch.maximum(number, nothing)  # ZERO and DEAD are larger than any number
    return best.clamp(min=0), code  # eq. (9)


def relu_pool_backward(g: Tensor, code: Tensor, geometry: Geometry) -> Tensor:
    """P⁻¹(g) R': each g_ijk sent to the place, and with the factor, that its code says."""
    g, code, windows = from_nchw(g), from_nchw(code), geometry.pooling.windows
    z = g.new_zeros(g.shape[0], *geometry.pooling.size, g.shape[3])
    for n, (p, q) in enumerate(windows.positions()):
        here = select(holds(code, "==", n), g)  # eq. (4), (10) with z > 0
        if n == 0 and geometry.subgradient:
            here += geometry.subgradient * select(holds(code, "==", ZERO), g)  # eq. (10) with z = 0
        offset_view(z, windows, p, q, geometry.pooling.count).copy_(here)  # windows do not overlap
    return to_nchw(z)


def relu_pool_jvp(z: Tensor, code: Tensor, geometry: Geometry) -> Tensor:
    """The adjoint of :func:`relu_pool_backward`: from each window of z what is at its code's place, times R'."""
    z, code, windows, count = from_nchw(z), from_nchw(code), geometry.pooling.windows, geometry.pooling.count
    picked = geometry.subgradient * select(code == ZERO, offset_view(z, windows, 0, 0, count))
    for n, (p, q) in enumerate(windows.positions()):
        picked = picked + select(code == n, offset_view(z, windows, p, q, count))
    return to_nchw(picked.contiguous())


# ------------------------------------------------------------------------- values, by a kernel where one serves


def conv_relu_pool_forward(x: Tensor, w: Tensor, b: Tensor | None, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """P(R(C(x, w) + b)) and its codes, both (B, K, I, J)."""
    if torch.compiler.is_compiling() and kernels.would_serve(geometry, x, w, b):
        return forward_operator(x, w, b, geometry.convolution.flip)
    found = kernels.forward(x, w, b, geometry)
    if found is not None:
        return found
    found = [
        relu_pool_forward(conv2d_forward(from_nchw(part), from_oihw(w), b, geometry.convolution), geometry)
        for (part,) in batch_chunks(geometry, w.shape[0], x)
    ]
    pooled, code = (parts[0] if len(parts) == 1 else torch.cat(parts) for parts in zip(*found, strict=True))
    return to_nchw(pooled), to_nchw(code)


def batch_chunks(geometry: Geometry, channels: int, *tensors: Tensor | None) -> Iterator[tuple[Tensor | None, ...]]:
    """``tensors``, each a batch or None, some images at a time: on the CPU z of so many stays in its caches."""
    if not all(t is None or (t.is_cpu and is_plain_tensor(t)) for t in tensors):
        return iter([tensors])
    images = max(1, CHUNK_NUMEL // (channels * math.prod(geometry.pooling.size)))
    return zip(*(repeat(None) if t is None else t.split(images) for t in tensors), strict=False)


CHUNK_NUMEL = 64 * 16 * 24 * 24  # numbers of z at a time: 2.4 MB in float32


def backward_by_kernel(
    g: Tensor, x: Tensor | None, w: Tensor | None, code: Tensor, geometry: Geometry, needed: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None] | None:
    """Those of x, w and b that are needed, if a kernel serves; x may be missing where w's gradient is not needed, and
    the other way round."""
    if not torch.compiler.is_compiling():
        found = kernels.backward(g, x, w, code, geometry, needed[:2])
    elif not any(needed[:2]) or not kernels.would_serve(geometry, g, x, w):
        return None
    else:
        channels = (x if x is not None else w).shape[1]
        x_shape = (g.shape[0], channels, *geometry.convolution.size)
        w_shape = (g.shape[1], channels, *geometry.convolution.windows.kernel_size)
        x, w = x if needed[1] else None, w if needed[0] else None
        flip, subgradient = geometry.convolution.flip, float(geometry.subgradient)
        found = backward_operator(g, x, w, code, x_shape, w_shape, flip, subgradient)
    return found and tuple(gradient if wanted else None for gradient, wanted in zip(found, needed, strict=True))


def conv_relu_pool_backward(
    g: Tensor, x: Tensor | None, w: Tensor | None, code: Tensor, geometry: Geometry, needed: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Those of x, w and b that are needed, by a kernel or by the formulas, as plain tensors."""
    found = backward_by_kernel(g, x, w, code, geometry, needed)
    if found is not None:
        return found
    x, w = x if needed[1] else None, w if needed[0] else None
    found = [
        backward_by_formula(*part, w, geometry, needed[2]) for part in batch_chunks(geometry, g.shape[1], g, code, x)
    ]
    if len(found) == 1:
        return found[0]
    for_x, for_w, for_b = zip(*found, strict=True)
    return None if w is None else torch.cat(for_x), total(*for_w), total(*for_b)


def backward_by_formula(
    g: Tensor, code: Tensor, x: Tensor | None, w: Tensor | None, geometry: Geometry, for_b: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of x, w and b: that of x if w is there, that of w if x is there, that of b if asked for."""
    d = relu_pool_backward(g, code, geometry)
    lies = geometry.convolution
    return (
        None if w is None else to_nchw(conv2d_grad_input(from_nchw(d), from_oihw(w), lies)),
        None if x is None else to_oihw(conv2d_grad_weight(from_nchw(d), from_nchw(x), lies)),
        grad_bias(d) if for_b else None,
    )


def _operator_forward(x: Tensor, w: Tensor, b: Tensor | None, flip: bool) -> tuple[Tensor, Tensor]:
    return conv_relu_pool_forward(x, w, b, geometry_of(x, w, b, 1, 0, flip, 0.5))


def _operator_backward(
    g: Tensor, x: Tensor | None, w: Tensor | None, code: Tensor, x_shape: list[int], w_shape: list[int], flip: bool,
    subgradient: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    geometry = geometry_of(g.new_empty(x_shape), g.new_empty(w_shape), None, 1, 0, flip, subgradient)
    dx, dw, db = conv_relu_pool_backward(g, x, w, code, geometry, (w is not None, x is not None, True))
    return g.new_empty(0) if dx is None else dx, g.new_empty(0) if dw is None else dw.contiguous(), db


forward_operator, backward_operator = conv_pool_operators.define(_operator_forward, _operator_backward)


# ---------------------------------------------------------------------------------------------- Functions


class ConvReLUPoolFunction(Function):
    """P(R(C(x, w) + b)) and its codes. Saves x, w and the codes: one byte for each number that comes out."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, w: Tensor, b: Tensor | None, geometry: Geometry) -> tuple[Tensor, Tensor]:
        pooled, code = conv_relu_pool_forward(x, w, b, geometry)
        return as_non_view(pooled), code

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, w, _, ctx.geometry = inputs
        code = output[1]
        ctx.mark_non_differentiable(code)
        ctx.shape = (x.shape[0], w.shape[0], *ctx.geometry.pooling.size)
        save(ctx, x, w, code, needed=(ctx.needs_input_grad[1], ctx.needs_input_grad[0], True))

    @staticmethod
    def backward(ctx: Any, g: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        x, w, code = ctx.saved_tensors
        for_x, for_w, for_b, _ = needed = ctx.needs_input_grad
        if not torch.is_grad_enabled():
            at_once = conv_relu_pool_backward if autograd_inactive() else backward_by_kernel
            found = at_once(g, x, w, code, ctx.geometry, needed[:3])
            if found is not None:
                return *found, None
        d = relu_pool_backward_apply(g, code, ctx.geometry)
        return (
            conv2d_grad_input_apply(d, w, ctx.geometry.convolution) if for_x else None,
            conv2d_grad_weight_apply(d, x, ctx.geometry.convolution) if for_w else None,
            grad_bias_apply(d) if for_b else None,
            None,
        )

    @staticmethod
    def jvp(
        ctx: Any, x_t: Tensor | None, w_t: Tensor | None, b_t: Tensor | None, _: None
    ) -> tuple[Tensor | None, None]:
        x, w, code = ctx.saved_tensors
        z_t = total(
            None if x_t is None else conv2d_apply(x_t, w, None, ctx.geometry.convolution),
            None if w_t is None else conv2d_apply(x, w_t, None, ctx.geometry.convolution),
            bias_jvp(b_t, ctx.shape),
        )
        return None if z_t is None else relu_pool_jvp_apply(z_t, code, ctx.geometry), None


conv_relu_pool_apply = differentiable(ConvReLUPoolFunction)
relu_pool_backward_apply, relu_pool_jvp_apply = linear_pair(
    ("ReLUPoolBackwardFunction", "ReLUPoolJvpFunction"), relu_pool_backward, relu_pool_jvp
)


def conv2d_relu_max_pool2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    *,
    subgradient: float = 0.5,
    flip_kernel: bool = True,
) -> Tensor:
    """``max_pool2d(relu(conv2d(...)))`` with 2×2 windows, in value and in gradient, ties and exact zeros included.

    Faster than the three, and of all that lies between it keeps a byte for each result.

    Args:
        input: (B, R, H, W) or (R, H, W), as for :func:`manualgrad.functional.conv2d`; weight, bias, stride, padding
            and flip_kernel too.
        subgradient: R'(0), as for :func:`manualgrad.functional.relu`.

    Returns:
        (B, K, I, J) or (K, I, J), half the rows and columns of the convolution, rounded down.

    Raises:
        TypeError, ValueError: as those three do.
    """
    checks.images("conv2d", input)
    checks.a_tensor("conv2d", "weight", weight)
    checks.share("relu", "subgradient", subgradient)
    input, weight, bias = autocast_lower(input, weight, bias)
    checks.floating("conv2d", input=input, weight=weight, bias=bias)
    geometry = geometry_of(input, weight, bias, stride, padding, flip_kernel, subgradient)
    if input.dim() == 3:
        return conv_relu_pool_apply(input.unsqueeze(0), weight, bias, geometry)[0].squeeze(0)
    return conv_relu_pool_apply(input, weight, bias, geometry)[0]
