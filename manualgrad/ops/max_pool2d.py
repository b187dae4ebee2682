r"""Max-pooling, equation (4), and P⁻¹ of section 4.2.

    P_ijk(x) = max_pq x_(s1·i+p)(s2·j+q)k                                        (4)

The maximum comes from one place (p, q), so ∂P_ijk/∂x_tuk is 1 there and 0 elsewhere: P⁻¹ sends each δ_ijk back to
that place. The first maximum in row-major order takes it all; NaN counts as a maximum, and of several the last
takes it, as in PyTorch. Where the places are held fixed, P is linear: its derivative picks the same places from
whatever it is given, and that of P⁻¹ too.

The maximum is taken in the document's layout, (B, H, W, K).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from manualgrad.ops import checks
from manualgrad.ops.differentiable import differentiable, linear_pair
from manualgrad.ops.layout import as_non_view, from_nchw, to_nchw
from manualgrad.ops.max_pool2d_geometry import Geometry, geometry_of
from manualgrad.ops.selection import holds, select
from manualgrad.ops.windows import crop, offset_view, pad

# ----------------------------------------------------------------------------------------------- formulas


def max_pool2d_forward(x: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """P(x), and the place of each maximum as the number p·(Q+1) + q, both (B, I, J, K)."""
    windows, count = geometry.windows, geometry.count
    lowest = -torch.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
    padded = pad(x, windows, lowest)
    best = offset_view(padded, windows, 0, 0, count)
    number = torch.zeros_like(best, dtype=geometry.number_dtype)
    inside = _inside(x, geometry)
    seen = None if inside is None else offset_view(inside, windows, 0, 0, count)
    for n, (p, q) in enumerate(list(windows.positions())[1:], start=1):
        value = offset_view(padded, windows, p, q, count)
        wins = ~holds(best.nan_to_num(torch.inf, torch.inf, -torch.inf), ">=", value)  # NaN wins, but not over NaN
        if inside is not None:  # a place in the padding never keeps the maximum, not even from -inf
            here = offset_view(inside, windows, p, q, count)
            wins, seen = wins | (here & ~seen), seen | here
        best = torch.maximum(best, value)  # eq. (4)
        number = torch.maximum(number, wins.to(number.dtype) * n)  # n grows: the larger is the later winner
    return best.contiguous(), number.contiguous()


def _inside(x: Tensor, geometry: Geometry) -> Tensor | None:
    """True at the places of the padded image that are not padding, (1, H, W, 1); None without padding."""
    if not any(geometry.windows.padding):
        return None
    return pad(x.new_ones(1, *x.shape[1:3], 1, dtype=torch.bool), geometry.windows, False)


def max_pool2d_backward(g: Tensor, number: Tensor, geometry: Geometry) -> Tensor:
    """P⁻¹(g): each g_ijk added to the place that its maximum came from."""
    g, number, windows = from_nchw(g), from_nchw(number), geometry.windows
    x = g.new_zeros(g.shape[0], *windows.padded(*geometry.size), g.shape[3])
    for n, (p, q) in enumerate(windows.positions()):
        offset_view(x, windows, p, q, geometry.count).add_(select(holds(number, "==", n), g))  # eq. (4)
    return to_nchw(crop(x, windows).contiguous())


def max_pool2d_jvp(x: Tensor, number: Tensor, geometry: Geometry) -> Tensor:
    """The adjoint of :func:`max_pool2d_backward`: from each window of x the value at the numbered place."""
    x, number, windows = from_nchw(x), from_nchw(number), geometry.windows
    padded = pad(x, windows)
    picked = offset_view(padded, windows, 0, 0, geometry.count)
    for n, (p, q) in enumerate(windows.positions()):
        picked = torch.where(number == n, offset_view(padded, windows, p, q, geometry.count), picked)
    return to_nchw(picked.contiguous())


def indices(number: Tensor, geometry: Geometry) -> Tensor:
    """The numbered places as t·W + u, row t and column u of the unpadded image: int64, (B, I, J, K)."""
    windows, (rows, columns) = geometry.windows, geometry.count
    number = number.long()
    p, q = number // windows.kernel_size[1], number % windows.kernel_size[1]
    i = torch.arange(rows, device=number.device)[:, None, None]
    j = torch.arange(columns, device=number.device)[:, None]
    t = windows.stride[0] * i + windows.dilation[0] * p - windows.padding[0]
    u = windows.stride[1] * j + windows.dilation[1] * q - windows.padding[2]
    return t * geometry.size[1] + u


# ---------------------------------------------------------------------------------------------- Functions


class MaxPool2dFunction(Function):
    """P(x) of equation (4), and the number of each maximum's place. Saves one byte per maximum."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
        best, number = max_pool2d_forward(from_nchw(x), geometry)
        return as_non_view(to_nchw(best)), to_nchw(number)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.geometry = inputs[1]
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_forward(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx: Any, g: Tensor, _: Tensor | None) -> tuple[Tensor, None]:
        (number,) = ctx.saved_tensors
        return max_pool2d_backward_apply(g, number, ctx.geometry), None

    @staticmethod
    def jvp(ctx: Any, x_t: Tensor, _: None) -> tuple[Tensor, None]:
        (number,) = ctx.saved_tensors
        return max_pool2d_jvp_apply(x_t, number, ctx.geometry), None


max_pool2d_apply = differentiable(MaxPool2dFunction)
max_pool2d_backward_apply, max_pool2d_jvp_apply = linear_pair(
    ("MaxPool2dBackwardFunction", "MaxPool2dJvpFunction"), max_pool2d_backward, max_pool2d_jvp
)


def max_pool2d(
    input: Tensor,
    kernel_size: int | tuple[int, int] = 2,
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Max-pooling, equation (4); its derivative is the document's P⁻¹.

    Equals ``torch.nn.functional.max_pool2d``, ties and NaN included.

    Args:
        input: (B, K, H, W) or (K, H, W), of any real dtype but bool (whole numbers have no gradient). B may be 0.
        kernel_size: rows and columns of a window, 2×2 as in the document if not given.
        stride: s1 and s2; None means the kernel's size.
        padding: places around the image that never hold the maximum; at most half the kernel's size.
        dilation: distance between the places of a window.
        ceil_mode: windows that begin inside the image but end beyond it count too.
        return_indices: the places of the maxima as well.

    Returns:
        (B, K, I, J) or (K, I, J), channels last in memory; with ``return_indices`` also int64 of the same shape:
        row·W + column of each maximum in its image.

    Raises:
        TypeError: a dtype that has no order.
        ValueError: a shape or number that does not fit; windows larger than the padded image.
    """
    checks.images("max_pool2d", input)
    checks.real("max_pool2d", input)
    geometry = geometry_of(tuple(input.shape), kernel_size, stride, padding, dilation, ceil_mode)
    batched = input if input.dim() == 4 else input.unsqueeze(0)
    best, number = max_pool2d_apply(batched, geometry)
    results = [best]
    if return_indices:
        results.append(to_nchw(indices(from_nchw(number), geometry)))
    if input.dim() == 3:
        results = [result.squeeze(0) for result in results]
    return tuple(results) if return_indices else results[0]
