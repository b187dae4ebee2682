"""Sliding windows: the indices (s1·i + p, s2·j + q) of equations (1) to (4), shared by convolution and pooling.

Tensors have the formula sheet's layout, (N, H, W, C).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor


@dataclass(frozen=True)
class Windows:
    """Size and position of the windows on an image.

    Pairs are (rows, columns); padding is (top, bottom, left, right).
    """

    kernel_size: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)

    def span(self) -> tuple[int, int]:
        """Rows and columns that a window covers, gaps of the dilation included."""
        (rows, columns), (d1, d2) = self.kernel_size, self.dilation
        return d1 * (rows - 1) + 1, d2 * (columns - 1) + 1

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the padded image."""
        top, bottom, left, right = self.padding
        return height + top + bottom, width + left + right

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """(H_out, W_out): the numbers of windows along the rows and the columns of a padded (height, width) image."""
        (rows, columns), (s1, s2) = self.span(), self.stride
        height, width = self.padded_size(height, width)
        return (height - rows) // s1 + 1, (width - columns) // s2 + 1

    def offsets(self) -> Iterator[tuple[int, int]]:
        """Every position (p, q) within a window, in row-major order."""
        return product(range(self.kernel_size[0]), range(self.kernel_size[1]))


def pad(x: Tensor, windows: Windows, value: float = 0.0) -> Tensor:
    """Return ``x`` with a border of ``value``."""
    top, bottom, left, right = windows.padding
    if not any(windows.padding):
        return x
    return torch.constant_pad_nd(x, (0, 0, left, right, top, bottom), value)


def crop(x: Tensor, windows: Windows) -> Tensor:
    """The adjoint of :func:`pad`: ``x`` without its border."""
    top, bottom, left, right = windows.padding
    if not any(windows.padding):
        return x
    return x.narrow(1, top, x.shape[1] - top - bottom).narrow(2, left, x.shape[2] - left - right)


def sliding_window_view(x: Tensor, windows: Windows) -> Tensor:
    """x_(s1·i+p)(s2·j+q)r for every i, j, p, q, r as a view: (N, H, W, C) to (N, H_out, W_out, kH, kW, C)."""
    rows, columns = windows.span()
    x = x.unfold(1, rows, windows.stride[0]).unfold(2, columns, windows.stride[1])
    d1, d2 = windows.dilation
    if (d1, d2) != (1, 1):
        x = x[..., ::d1, ::d2]
    return x.permute(0, 1, 2, 4, 5, 3)


def offset_view(x: Tensor, windows: Windows, p: int, q: int, output_size: tuple[int, int]) -> Tensor:
    """x_(s1·i+p)(s2·j+q)k for every i and j and one (p, q) as a view: (N, H, W, C) to (N, H_out, W_out, C)."""
    for dim, offset in ((1, p), (2, q)):
        stride, dilation, length = windows.stride[dim - 1], windows.dilation[dim - 1], output_size[dim - 1]
        x = x.narrow(dim, dilation * offset, stride * (length - 1) + 1)
        if stride > 1:
            x = x[:, ::stride] if dim == 1 else x[:, :, ::stride]
    return x


def col2im(columns: Tensor, windows: Windows, size: tuple[int, int]) -> Tensor:
    """The adjoint of :func:`sliding_window_view`: (N, H_out, W_out, kH, kW, C) to (N, H, W, C), (H, W) = ``size``.

    Each value is added to the pixel that the view read it from. Pixels outside all windows stay exactly 0.
    """
    batch, out_height, out_width, _, _, channels = columns.shape
    x = columns.new_zeros(batch, *size, channels)
    for p, q in windows.offsets():
        offset_view(x, windows, p, q, (out_height, out_width)).add_(columns[:, :, :, p, q])
    return x
