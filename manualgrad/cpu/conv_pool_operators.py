"""The kernels for P(R(C(x, w) + b)) as operators that torch.compile knows by shape and does not look into."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.library import custom_op

_FORWARD = "(Tensor x, Tensor w, Tensor? b, bool flip) -> (Tensor, Tensor)"
_BACKWARD = (
    "(Tensor g, Tensor? x, Tensor? w, Tensor code, SymInt[] x_shape, SymInt[] w_shape, bool flip, float subgradient)"
    " -> (Tensor, Tensor, Tensor)"
)


def define(forward: Callable[..., tuple[Tensor, ...]], backward: Callable[..., tuple[Tensor, ...]]) -> tuple:
    """Both as operators, to be called while the compiler traces. The two are given what the operators' schemas say
    and return what those say; a gradient that is not asked for is an empty tensor."""
    compute = custom_op("manualgrad::conv_relu_pool", forward, mutates_args=(), schema=_FORWARD)
    differentiate = custom_op("manualgrad::conv_relu_pool_backward", backward, mutates_args=(), schema=_BACKWARD)

    @compute.register_fake
    def _(x: Tensor, w: Tensor, b: Tensor | None, flip: bool) -> tuple[Tensor, Tensor]:
        rows, columns = ((x.shape[n] - w.shape[n] + 1) // 2 for n in (2, 3))
        shape = (x.shape[0], rows, columns, w.shape[0])
        return tuple(x.new_empty(shape, dtype=dtype).permute(0, 3, 1, 2) for dtype in (x.dtype, torch.uint8))

    @differentiate.register_fake
    def _(
        g: Tensor, x: Tensor | None, w: Tensor | None, code: Tensor, x_shape: Sequence[int], w_shape: Sequence[int],
        flip: bool, subgradient: float,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        images, channels, height, width = x_shape
        return (
            g.new_empty(0) if w is None else g.new_empty(images, height, width, channels).permute(0, 3, 1, 2),
            g.new_empty(0) if x is None else g.new_empty(w_shape),
            g.new_empty(w_shape[0]),
        )

    return compute, differentiate
