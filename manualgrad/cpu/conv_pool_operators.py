"""The conv_pool kernels as operators of ``torch.library``, which torch.compile does not trace into."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.library import custom_op

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
