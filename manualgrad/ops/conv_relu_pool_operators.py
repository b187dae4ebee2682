"""``conv_relu_pool_forward`` and ``_backward`` as operators of ``torch.library``, which torch.compile does not trace.

A compiled graph calls the operator, and the operator dispatches to a kernel, or to the formula if none supports the
tensors. The operators exist for stride 1 without padding, which kernels support.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.library import custom_op

from manualgrad.dispatch import set_operator
from manualgrad.ops.conv_relu_pool import Grads, conv_relu_pool_backward, conv_relu_pool_forward
from manualgrad.ops.conv_relu_pool_geometry import ConvReLUPoolGeometry, make_conv_relu_pool_geometry

_FORWARD = "(Tensor x, Tensor weight, Tensor? bias, bool flip) -> (Tensor, Tensor)"
_BACKWARD = (
    "(Tensor grad_out, Tensor? x, Tensor? weight, Tensor pool_index, SymInt[] x_shape, SymInt[] weight_shape, "
    "bool flip, float subgradient) -> (Tensor, Tensor, Tensor)"
)


def define_operators(
    forward: Callable[..., tuple[Tensor, ...]], backward: Callable[..., tuple[Tensor, ...]]
) -> tuple[Callable[..., tuple[Tensor, Tensor]], Callable[..., tuple[Tensor, Tensor, Tensor]]]:
    """Register the operators ``conv_relu_pool`` and ``conv_relu_pool_backward``, which call ``forward`` and
    ``backward``.

    Both functions have the arguments and results of the schemas above. The backward operator returns an empty tensor
    for the weight gradient if ``x`` is None, and for the input gradient if ``weight`` is None."""
    forward_operator = custom_op("manualgrad::conv_relu_pool", forward, mutates_args=(), schema=_FORWARD)
    backward_operator = custom_op("manualgrad::conv_relu_pool_backward", backward, mutates_args=(), schema=_BACKWARD)

    @forward_operator.register_fake
    def _(x: Tensor, weight: Tensor, bias: Tensor | None, flip: bool) -> tuple[Tensor, Tensor]:
        out_height, out_width = ((x.shape[n] - weight.shape[n] + 1) // 2 for n in (2, 3))
        shape = (x.shape[0], out_height, out_width, weight.shape[0])
        out, pool_index = (x.new_empty(shape, dtype=dtype) for dtype in (x.dtype, torch.uint8))
        return out.permute(0, 3, 1, 2), pool_index.permute(0, 3, 1, 2)

    @backward_operator.register_fake
    def _(
        grad_out: Tensor, x: Tensor | None, weight: Tensor | None, pool_index: Tensor, x_shape: Sequence[int],
        weight_shape: Sequence[int], flip: bool, subgradient: float,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        batch_size, channels, height, width = x_shape
        empty = grad_out.new_empty
        return (
            empty(0) if weight is None else empty(batch_size, height, width, channels).permute(0, 3, 1, 2),
            empty(0) if x is None else empty(weight_shape),
            empty(weight_shape[0]),
        )

    return forward_operator, backward_operator


def _forward(x: Tensor, w: Tensor, b: Tensor | None, flip_kernel: bool) -> tuple[Tensor, Tensor]:
    return conv_relu_pool_forward(x, w, b, make_conv_relu_pool_geometry(x, w, b, 1, 0, flip_kernel, 0.5))


def _backward(
    g: Tensor, x: Tensor | None, w: Tensor | None, pool_index: Tensor, x_shape: list[int], w_shape: list[int],
    flip_kernel: bool, subgradient: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """:func:`conv_relu_pool_backward` with an empty tensor in place of None, as the operator's schema requires."""
    geometry = make_conv_relu_pool_geometry(
        g.new_empty(x_shape), g.new_empty(w_shape), None, 1, 0, flip_kernel, subgradient
    )
    needs_grad = (w is not None, x is not None, True)
    grad_x, grad_w, grad_b = conv_relu_pool_backward(g, x, w, pool_index, geometry, needs_grad)
    assert grad_b is not None  # needs_grad asks for it
    return (
        g.new_empty(0) if grad_x is None else grad_x,
        g.new_empty(0) if grad_w is None else grad_w.contiguous(),
        grad_b,
    )


_forward_operator, _backward_operator = define_operators(_forward, _backward)


def _call_forward(x: Tensor, w: Tensor, b: Tensor | None, geometry: ConvReLUPoolGeometry) -> tuple[Tensor, Tensor]:
    return _forward_operator(x, w, b, geometry.convolution.flip_kernel)


def _call_backward(
    g: Tensor, x: Tensor | None, w: Tensor | None, pool_index: Tensor, geometry: ConvReLUPoolGeometry,
    needs_grad: tuple[bool, bool, bool],
) -> Grads:  # fmt: skip
    x_or_w = x if x is not None else w
    assert x_or_w is not None  # x may be None only if w's gradient is not needed, and w if x's is not
    convolution, channels = geometry.convolution, x_or_w.shape[1]
    grads = _backward_operator(
        g, x if needs_grad[1] else None, w if needs_grad[0] else None, pool_index,
        (g.shape[0], channels, *convolution.input_size), (g.shape[1], channels, *convolution.windows.kernel_size),
        convolution.flip_kernel, float(geometry.subgradient),
    )  # fmt: skip
    grad_x, grad_w, grad_b = (grad if needed else None for grad, needed in zip(grads, needs_grad, strict=True))
    return grad_x, grad_w, grad_b


set_operator("conv_relu_pool_forward", _call_forward)
set_operator("conv_relu_pool_backward", _call_backward)
