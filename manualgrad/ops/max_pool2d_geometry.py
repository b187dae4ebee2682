"""Geometry of a pooling: its arguments that are not tensors, checked and collected in one value."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from manualgrad.ops import checks
from manualgrad.ops.value_cache import cached_by_value
from manualgrad.ops.windows import Windows


@dataclass(frozen=True)
class MaxPool2dGeometry:
    """Windows, (H, W) and (H_out, W_out) of a pooling. The windows' padding reaches as far as the last window.

    ``channels_last`` is the memory format of results in PyTorch's layout: True or, for contiguous ones, False.
    """

    windows: Windows
    input_size: tuple[int, int]
    output_size: tuple[int, int]
    channels_last: bool = True

    @property
    def index_dtype(self) -> torch.dtype:
        """Smallest dtype for an index within a window."""
        kernel_height, kernel_width = self.windows.kernel_size
        return torch.uint8 if kernel_height * kernel_width <= 256 else torch.int32


@cached_by_value
def make_max_pool2d_geometry(
    shape: tuple[int, ...],
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] | None,
    padding: int | tuple[int, int],
    dilation: int | tuple[int, int],
    ceil_mode: bool,
    channels_last: bool = True,
) -> MaxPool2dGeometry:
    """Check the arguments of :func:`manualgrad.functional.max_pool2d` and return their geometry.

    Args:
        shape: shape of the input, (N, C, H, W) or (C, H, W).

    Raises:
        TypeError: ceil_mode is no bool.
        ValueError: shapes or numbers do not fit.
    """
    if 0 in shape[-3:]:
        raise ValueError(f"max_pool2d: only the batch may be empty, got input of shape {tuple(shape)}")
    if not isinstance(ceil_mode, bool):
        raise TypeError(f"max_pool2d: ceil_mode must be True or False, got {ceil_mode!r}")
    kernel = checks.as_pair("max_pool2d", "kernel_size", kernel_size, minimum=1)
    if stride is None or (isinstance(stride, (tuple, list)) and not stride):
        strides = kernel
    else:
        strides = checks.as_pair("max_pool2d", "stride", stride, minimum=1)
    paddings = checks.as_pair("max_pool2d", "padding", padding, minimum=0)
    dilations = checks.as_pair("max_pool2d", "dilation", dilation, minimum=1)
    if paddings[0] > kernel[0] // 2 or paddings[1] > kernel[1] // 2:
        raise ValueError(
            f"max_pool2d: padding must be at most half the kernel, got padding {paddings} for kernel_size {kernel}"
        )
    height, width = shape[-2:]
    out_height, bottom = _windows_along(height, kernel[0], strides[0], paddings[0], dilations[0], ceil_mode)
    out_width, right = _windows_along(width, kernel[1], strides[1], paddings[1], dilations[1], ceil_mode)
    if out_height < 1 or out_width < 1:
        raise ValueError(
            f"max_pool2d: the window must fit into the padded input, got kernel_size {kernel} with dilation "
            f"{dilations} and padding {paddings} on {height}x{width}"
        )
    windows = Windows(kernel, strides, (paddings[0], bottom, paddings[1], right), dilations)
    return MaxPool2dGeometry(windows, (height, width), (out_height, out_width), channels_last)


def _windows_along(
    size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool
) -> tuple[int, int]:
    """Number of windows along one dimension, and the padding after the image that they need."""
    span = dilation * (kernel - 1) + 1
    free = size + 2 * padding - span
    count = free // stride + 1
    if ceil_mode and free % stride and count * stride < size + padding:
        count += 1  # this window begins inside the image or in the padding before it
    return count, max(0, (count - 1) * stride + span - size - padding)
