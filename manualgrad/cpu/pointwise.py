"""Convolutions with a kernel of one pixel as matrix products of PyTorch: no weight is packed, no window gathered.

``geometry`` is a ``Conv2dGeometry`` of ``ops/conv2d_geometry.py``, and the tensors fit it (``cpu/conv2d.py``). The
products write into results allocated before, which autocast leaves as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from manualgrad.cpu import memory, team
from manualgrad.cpu.jit import KernelModule
from manualgrad.cpu.tensor_checks import is_in_contiguous_format

MIN_PIXELS = 64  # of a contiguous image that is a product of its own; smaller ones are copied into one matrix
# Entries of the weight for each window, by instruction set, from which on packing it takes longest in the kernels.
MIN_WEIGHTS = {"avx2": 200, "avx512": 5000}
# For so few windows and so many entries a product is as fast as the kernels, and needs no memory for a packed weight.
MAX_WINDOWS, MIN_ENTRIES = 128, 1 << 16


def is_pointwise(
    module: KernelModule, geometry: Any, images: Tensor, out_channels: int, is_result_contiguous: bool
) -> bool:
    """Return True if matrix products are the fastest way to the convolution: one pixel, no padding, one group.

    ``images`` are a factor, ``out_channels`` the channels of the other images. On AVX-512 kernels are faster than the
    products that PyTorch has on processors of AMD, but for weights that are larger still. For few windows both are as
    fast, and a product computes them if the packed weight would take more memory than the images. In a fork, products
    on several threads would hang."""
    if geometry.windows.kernel_size != (1, 1):
        return False
    batch, channels, _, _ = images.shape
    uses_avx2 = module.instructions == "avx2"
    is_contiguous = uses_avx2 and is_result_contiguous and is_in_contiguous_format(images)
    min_weights = MIN_WEIGHTS[module.instructions]
    is_faster = _is_faster(geometry, batch, channels, out_channels, is_contiguous, min_weights)
    return is_faster and team.single_thread_reason() is None


@lru_cache(maxsize=1024)
def _is_faster(
    geometry: Any, batch: int, channels: int, out_channels: int, is_contiguous: bool, min_weights: int
) -> bool:
    if geometry.groups != 1 or any(geometry.windows.padding):
        return False
    height, width = geometry.windows.output_size(*geometry.input_size)
    pixels, weights = height * width, channels * out_channels
    windows = batch * pixels
    is_larger_than_images = weights >= windows * (channels + out_channels)
    return bool(
        (is_contiguous and pixels >= MIN_PIXELS)
        or weights >= min_weights * windows
        or (windows <= MAX_WINDOWS and weights >= MIN_ENTRIES and is_larger_than_images)
    )


def pointwise_forward(x: Tensor, w: Tensor, b: Tensor | None, geometry: Any) -> Tensor:
    """C(x, w) + b: (N, C_out, H_out, W_out), in the memory format of the geometry."""
    x, matrix = _copied_windows(x, geometry), _matrix(w)
    out = _new(geometry, x.shape[0], w.shape[0], x.shape[2:])
    if _by_image(x, out):
        weights, bias = matrix.expand(x.shape[0], *matrix.shape), None if b is None else b.unsqueeze(1)
        _product(bias, weights, x.flatten(2), out.flatten(2))  # eq. (1), (17)
        return out
    return _by_rows(b, x, matrix.t(), out)


def pointwise_grad_input(g: Tensor, w: Tensor, geometry: Any) -> Tensor:
    """X(g, w): (N, C_in, H, W), in the memory format of the geometry; 0 for pixels that no window has."""
    matrix, batch, channels = _matrix(w), g.shape[0], w.shape[1]
    grad_windows = _new(geometry, batch, channels, g.shape[2:])
    if _by_image(g, grad_windows):
        weights = matrix.t().expand(batch, *matrix.t().shape)
        _product(None, weights, g.flatten(2), grad_windows.flatten(2))  # eq. (2)
    else:
        grad_windows = _by_rows(None, g, matrix, grad_windows)
    if tuple(g.shape[2:]) == geometry.input_size:
        return grad_windows
    grad_x = _new(geometry, batch, channels, geometry.input_size).zero_()
    _windows(grad_x, geometry).copy_(grad_windows)
    return grad_x


def pointwise_grad_weight(g: Tensor, x: Tensor, geometry: Any) -> Tensor:
    """W(g, x): (C_out, C_in, 1, 1)."""
    x = _copied_windows(x, geometry)
    grad_w = memory.new(g.shape[1], x.shape[1], 1, 1)
    matrix = _matrix(grad_w)
    if not _by_image(x, g):
        torch.mm(_rows(g).t(), _rows(x), out=matrix)  # eq. (3)
        return grad_w
    for n, (g_image, x_image) in enumerate(zip(g.flatten(2), x.flatten(2), strict=True)):
        _product(matrix if n else None, g_image, x_image.t(), matrix)  # eq. (3)
    return grad_w


def _windows(x: Tensor, geometry: Any) -> Tensor:
    """View of the pixels of x that windows have."""
    rows, columns = geometry.windows.stride
    return x if rows == columns == 1 else x[:, :, ::rows, ::columns]


def _copied_windows(x: Tensor, geometry: Any) -> Tensor:
    """The pixels of x that windows have, contiguous if x is: x itself, or a copy."""
    windows = _windows(x, geometry)
    return windows.contiguous() if windows is not x and is_in_contiguous_format(x) else windows


def _matrix(w: Tensor) -> Tensor:
    return w.reshape(w.shape[0], w.shape[1])


def _new(geometry: Any, batch: int, channels: int, size: Sequence[int]) -> Tensor:
    new: Callable[..., Tensor] = memory.new_channels_last if geometry.channels_last else memory.new
    return new(batch, channels, *size)


def _by_image(x: Tensor, result: Tensor) -> bool:
    """Return True if one product for each image needs no copies, and images are not too small for that."""
    _, _, height, width = x.shape
    return height * width >= MIN_PIXELS and is_in_contiguous_format(x) and is_in_contiguous_format(result)


def _by_rows(b: Tensor | None, x: Tensor, matrix: Tensor, out: Tensor) -> Tensor:
    """Multiply the pixels of x, whose channels are the rows of one matrix, by ``matrix``, into ``out``; return it."""
    batch, channels, height, width = out.shape
    if out.is_contiguous(memory_format=torch.channels_last):
        product = out.permute(0, 2, 3, 1).view(batch * height * width, channels)
        _product(b, _rows(x), matrix, product)
        return out
    product = memory.new(batch * height * width, channels)
    _product(b, _rows(x), matrix, product)
    return out.copy_(product.view(batch, height, width, channels).permute(0, 3, 1, 2))


def _rows(x: Tensor) -> Tensor:
    """x, (N, C, H, W), as (N · H · W, C), a view if it is channels_last."""
    batch, channels, height, width = x.shape
    return x.permute(0, 2, 3, 1).reshape(batch * height * width, channels)


def _product(addend: Tensor | None, a: Tensor, b: Tensor, out: Tensor) -> None:
    """Write a b, or ``addend`` + a b, into ``out``; a and b are matrices, or one matrix for each image."""
    if a.dim() == 2:
        torch.mm(a, b, out=out) if addend is None else torch.addmm(addend, a, b, out=out)
    else:
        torch.bmm(a, b, out=out) if addend is None else torch.baddbmm(addend, a, b, out=out)
