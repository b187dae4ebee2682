"""How pooling windows lie on their input: the arguments that are not tensors, checked and made one value."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from manualgrad.ops import checks
from manualgrad.ops.windows import Windows


@dataclass(frozen=True)
class Geometry:
    """``size`` is (H, W), ``count`` is (I, J); the windows' padding reaches as far as the last window does."""

    windows: Windows
    size: tuple[int, int]
    count: tuple[int, int]

    @property
    def number_dtype(self) -> torch.dtype:
        """The smallest dtype that numbers the places of a window."""
        places = self.windows.kernel_size[0] * self.windows.kernel_size[1]
        return torch.uint8 if places <= 256 else torch.int32


def geometry_of(
    shape: tuple[int, ...],
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] | None,
    padding: int | tuple[int, int],
    dilation: int | tuple[int, int],
    ceil_mode: bool,
) -> Geometry:
    """The arguments of :func:`manualgrad.functional.max_pool2d`, looked at; ``shape`` is that of its input.

    Raises TypeError or ValueError where they do not fit.
    """
    if 0 in shape[-3:]:
        raise ValueError(f"max_pool2d: only the batch may be empty, got input of shape {tuple(shape)}")
    if not isinstance(ceil_mode, bool):
        raise TypeError(f"max_pool2d: ceil_mode must be True or False, got {ceil_mode!r}")
    kernel = checks.pair("max_pool2d", "kernel_size", kernel_size, least=1)
    steps = (
        kernel
        if stride is None or stride == [] or stride == ()
        else checks.pair("max_pool2d", "stride", stride, least=1)
    )
    border = checks.pair("max_pool2d", "padding", padding, least=0)
    spacing = checks.pair("max_pool2d", "dilation", dilation, least=1)
    if border[0] > kernel[0] // 2 or border[1] > kernel[1] // 2:
        raise ValueError(
            f"max_pool2d: padding must be at most half the kernel, got padding {border} for kernel_size {kernel}"
        )
    size = tuple(shape[-2:])
    sides = [
        _side(n, k, s, b, d, ceil_mode) for n, k, s, b, d in zip(size, kernel, steps, border, spacing, strict=True)
    ]
    (rows, bottom), (columns, right) = sides
    if rows < 1 or columns < 1:
        raise ValueError(
            f"max_pool2d: the window must fit into the padded input, got kernel_size {kernel} with dilation "
            f"{spacing} and padding {border} on {size[0]}x{size[1]}"
        )
    windows = Windows(kernel, steps, (border[0], bottom, border[1], right), spacing)
    return Geometry(windows, size, (rows, columns))


def _side(size: int, kernel: int, stride: int, border: int, dilation: int, ceil_mode: bool) -> tuple[int, int]:
    """Along one dimension: how many windows, and how much padding after the image they need."""
    span = dilation * (kernel - 1) + 1
    room = size + 2 * border - span
    count = room // stride + 1
    if ceil_mode and room % stride and count * stride < size + border:
        count += 1  # it begins inside the image or in the padding before it
    return count, max(0, (count - 1) * stride + span - size - border)
