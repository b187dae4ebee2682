"""The places (s1·i + p, s2·j + q) of equations (1) to (4), which convolution and pooling share.

Everything here has the document's layout, ``(batch, row, column, channel)``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor


@dataclass(frozen=True)
class Windows:
    """How windows lie on an image: each pair is (rows, columns); padding is (top, bottom, left, right)."""

    kernel_size: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)

    def span(self) -> tuple[int, int]:
        """Rows and columns from a window's first place to its last, both included."""
        (rows, columns), (d1, d2) = self.kernel_size, self.dilation
        return d1 * (rows - 1) + 1, d2 * (columns - 1) + 1

    def padded(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the padded image."""
        top, bottom, left, right = self.padding
        return height + top + bottom, width + left + right

    def count(self, height: int, width: int) -> tuple[int, int]:
        """I and J, the windows that lie wholly inside a padded (height, width) image."""
        (rows, columns), (s1, s2) = self.span(), self.stride
        height, width = self.padded(height, width)
        return (height - rows) // s1 + 1, (width - columns) // s2 + 1

    def positions(self) -> Iterator[tuple[int, int]]:
        """Every (p, q), in row-major order."""
        return product(range(self.kernel_size[0]), range(self.kernel_size[1]))


def pad(x: Tensor, windows: Windows, value: float = 0.0) -> Tensor:
    """``x`` with ``value`` around it."""
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
    """x_(s1·i+p)(s2·j+q)r for every i, j, p, q, r, without a copy: (B, H, W, R) to (B, I, J, P+1, Q+1, R)."""
    rows, columns = windows.span()
    x = x.unfold(1, rows, windows.stride[0]).unfold(2, columns, windows.stride[1])
    d1, d2 = windows.dilation
    if (d1, d2) != (1, 1):
        x = x[..., ::d1, ::d2]
    return x.permute(0, 1, 2, 4, 5, 3)


def offset_view(x: Tensor, windows: Windows, p: int, q: int, count: tuple[int, int]) -> Tensor:
    """x_(s1·i+p)(s2·j+q)k for every i and j of one (p, q), without a copy: (B, H, W, K) to (B, I, J, K)."""
    for dim, offset in ((1, p), (2, q)):
        stride, dilation, n = windows.stride[dim - 1], windows.dilation[dim - 1], count[dim - 1]
        x = x.narrow(dim, dilation * offset, stride * (n - 1) + 1)
        if stride > 1:
            x = x[:, ::stride] if dim == 1 else x[:, :, ::stride]
    return x


def col2im(columns: Tensor, windows: Windows, size: tuple[int, int]) -> Tensor:
    """The adjoint of :func:`sliding_window_view`: (B, I, J, P+1, Q+1, R) to (B, H, W, R), each value added where it came
    from.

    Places that no window reaches keep an exact 0.
    """
    batch, *count, _, _, channels = columns.shape
    x = columns.new_zeros(batch, *size, channels)
    for p, q in windows.positions():
        offset_view(x, windows, p, q, count).add_(columns[:, :, :, p, q])
    return x
