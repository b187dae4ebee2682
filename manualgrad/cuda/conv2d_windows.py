"""The windows of a convolution as constants of its kernels."""

from __future__ import annotations

from typing import Any


def window_constants(windows: Any) -> dict[str, int]:
    """Stride, padding and dilation under the names that the kernels have for them.

    Only the padding at the top and at the left moves windows; the rest is in the number of windows."""
    names = ("STRIDE_H", "STRIDE_W", "PADDING_H", "PADDING_W", "DILATION_H", "DILATION_W")
    top, _, left, _ = windows.padding
    return dict(zip(names, (*windows.stride, top, left, *windows.dilation), strict=True))
