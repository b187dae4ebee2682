r"""Flatten, equation (5).

    F_(i·J·K + j·K + k)(x) = x_ijk                                               (5)

The formula sheet prints "iK" for "jK". (Row, column, channel) is the order of channels_last memory, so F is a view of
such an image. F moves numbers and changes none; its derivative moves them back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.autograd import Function

from manualgrad.ops import checks
from manualgrad.ops.differentiable import differentiable
from manualgrad.ops.layout import from_nchw, to_nchw
from manualgrad.ops.tracers import traceable


@dataclass(frozen=True)
class ImageSize:
    """Channels, rows and columns of an image: K, I and J of equation (5)."""

    channels: int
    rows: int
    columns: int


# ----------------------------------------------------------------------------------------------- formulas


def flatten_forward(x: Tensor) -> Tensor:
    """F(x): the formula sheet's (N, H, W, C) as (N, H·W·C)."""
    return x.reshape(x.shape[0], x.shape[1] * x.shape[2] * x.shape[3])  # eq. (5)


def unflatten_forward(f: Tensor, size: ImageSize) -> Tensor:
    """F⁻¹(f) of section 4.2: (N, H·W·C) as (N, H, W, C)."""
    return f.reshape(f.shape[0], size.rows, size.columns, size.channels)  # eq. (5)


# ---------------------------------------------------------------------------------------------- Functions


class FlattenFunction(Function):
    """F(x) of equation (5). Saves the size of the image and no tensor."""

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
    """F⁻¹(f), the derivative of F."""

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


flatten_apply: Callable[[Tensor], Tensor] = differentiable(FlattenFunction)
unflatten_apply: Callable[[Tensor, ImageSize], Tensor] = differentiable(UnflattenFunction)


@traceable
def flatten(input: Tensor) -> Tensor:
    """Each image as one vector, in the (row, column, channel) order of equation (5).

    ``torch.flatten(input, 1)`` has (channel, row, column) order. The two are equal for
    ``torch.flatten(input.permute(0, 2, 3, 1), 1)``.

    Args:
        input: (N, C, H, W), or (C, H, W) for one image; any dtype.

    Returns:
        (N, H·W·C) or (H·W·C,). It is a view if the strides of ``input`` allow it, and then must not be changed in
        place: PyTorch refuses an in-place change of a view that a Function returned.

    Raises:
        TypeError: input is no tensor.
        ValueError: another number of dimensions.
    """
    checks.require_images("flatten", input)
    if input.dim() == 3:
        return flatten_apply(input.unsqueeze(0)).squeeze(0)
    return flatten_apply(input)
