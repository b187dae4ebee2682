r"""Flatten, equation (5).

    F_(i·J·K + j·K + k)(x) = x_ijk                                               (5)

The document prints "iK" for "jK". Row, column, channel is channels_last memory read from front to back, so F is a
view of an image that lies so. It moves numbers and changes none: its derivative moves them back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.autograd import Function

from manualgrad.ops import checks
from manualgrad.ops.differentiable import differentiable
from manualgrad.ops.layout import from_nchw, to_nchw


@dataclass(frozen=True)
class ImageSize:
    """K, I and J of equation (5)."""

    channels: int
    rows: int
    columns: int


def flatten_forward(x: Tensor) -> Tensor:
    """The document's (B, I, J, K) as (B, I·J·K)."""
    return x.reshape(x.shape[0], x.shape[1] * x.shape[2] * x.shape[3])  # eq. (5)


def unflatten_forward(f: Tensor, size: ImageSize) -> Tensor:
    """F⁻¹ of section 4.2: (B, I·J·K) as (B, I, J, K)."""
    return f.reshape(f.shape[0], size.rows, size.columns, size.channels)  # eq. (5)


class FlattenFunction(Function):
    """F(x) of equation (5); saves nothing."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return flatten_forward(from_nchw(x))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.size = ImageSize(*inputs[0].shape[1:])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return unflatten_apply(g, ctx.size)

    @staticmethod
    def jvp(ctx: Any, x_t: Tensor) -> Tensor:
        return flatten_apply(x_t)


class UnflattenFunction(Function):
    """F⁻¹, the derivative of F."""

    generate_vmap_rule = True

    @staticmethod
    def forward(f: Tensor, size: ImageSize) -> Tensor:
        return to_nchw(unflatten_forward(f, size))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.size = inputs[1]

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None]:
        return flatten_apply(v), None

    @staticmethod
    def jvp(ctx: Any, f_t: Tensor, _: None) -> Tensor:
        return unflatten_apply(f_t, ctx.size)


flatten_apply = differentiable(FlattenFunction)
unflatten_apply = differentiable(UnflattenFunction)


def flatten(input: Tensor) -> Tensor:
    """Each image as one row of numbers, in the (row, column, channel) order of equation (5).

    ``torch.flatten(input, 1)`` has (channel, row, column) order; the two are equal after
    ``input.permute(0, 2, 3, 1)``.

    Args:
        input: (B, K, I, J), or (K, I, J) for one image; any dtype.

    Returns:
        (B, I·J·K) or (I·J·K,); a view where the memory allows it, and then not to be changed in place:
        PyTorch refuses that for a view that a Function made.

    Raises:
        ValueError: another number of dimensions, or an empty image.
    """
    checks.images("flatten", input)
    if input.dim() == 3:
        return flatten_apply(input.unsqueeze(0)).squeeze(0)
    return flatten_apply(input)
