"""Convolution's operands as matrices: im2col of the input, and weight and output to match.

Tensors have the formula sheet's layout: x (N, H, W, C_in), w (kH, kW, C_in / groups, C_out), z (N, H_out, W_out,
C_out). Matrices have the group as their first dimension.

One product takes either the whole kernel or one row of it, a *block*; :func:`gemm_window` decides. Neighbouring
windows share rows of the image. With one kernel row at a time such a row is copied once and not kH times.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from manualgrad.ops.conv2d_geometry import Conv2dGeometry
from manualgrad.ops.tracers import constant_shape
from manualgrad.ops.windows import Windows, pad, sliding_window_view

MIN_GEMM_K = 32  # entries of one kernel row, below which a product of that row alone is too small to be worth while


def gemm_window(geometry: Conv2dGeometry, in_channels: int) -> Windows:
    """Windows of one product: the whole kernel, or one row of it.

    The whole kernel is used if one row has few entries, or if the stride skips rows of the image.
    """
    windows = geometry.windows
    kernel_width, row_stride = windows.kernel_size[1], windows.stride[0]
    if row_stride > 1 or kernel_width * in_channels // geometry.groups < MIN_GEMM_K:
        return windows
    return replace(windows, kernel_size=(1, kernel_width))


def swap_batch_rows(z: Tensor, window: Windows, geometry: Conv2dGeometry) -> Tensor:
    """(N, H_out, ...) as (H_out, N, ...), or back, if a product takes one kernel row; otherwise ``z`` unchanged.

    Image rows first, the matrix rows that kernel row n uses are consecutive: they begin n image rows further down.
    """
    return z if window == geometry.windows else z.transpose(0, 1)


def gemm_lead_dims(batch: int, out_height: int, window: Windows, geometry: Conv2dGeometry) -> tuple[int, int]:
    """Sizes of the first two dimensions in the order of :func:`swap_batch_rows`."""
    return (batch, out_height) if window == geometry.windows else (out_height, batch)


def im2col(x: Tensor, window: Windows, geometry: Conv2dGeometry) -> Tensor:
    """x_(s1·i+p)(s2·j+q)r as matrices with one row for each window: (groups, N·H_out·W_out, kH·kW·C_in / groups).

    Rows are in the order of :func:`swap_batch_rows`.
    """
    groups = geometry.groups
    view = swap_batch_rows(sliding_window_view(pad(x, window), window), window, geometry)
    out_height, out_width = window.output_size(*geometry.input_size)
    *_, kernel_height, kernel_width, channels = constant_shape(view)
    lead = gemm_lead_dims(-1, out_height, window, geometry)
    view = view.reshape(*lead, out_width, kernel_height, kernel_width, groups, channels // groups)
    depth = kernel_height * kernel_width * channels // groups
    if kernel_width * channels // groups >= out_width:
        return view.permute(5, 0, 1, 2, 3, 4, 6).reshape(groups, -1, depth)
    # The innermost loop of the copy runs along W_out, the longer side: much faster for an image of one channel.
    return view.permute(5, 3, 4, 6, 0, 1, 2).reshape(groups, depth, -1).transpose(1, 2)


def im2col_blocks(x: Tensor, geometry: Conv2dGeometry) -> Iterator[Tensor]:
    """Yield the matrix of :func:`im2col` for each block of the kernel, from top to bottom."""
    window = gemm_window(geometry, constant_shape(x)[3])
    matrix = im2col(x, window, geometry)
    if window == geometry.windows:
        yield matrix
        return
    batch = x.size(0)
    for block in range(geometry.windows.kernel_size[0]):
        yield kernel_row_block(matrix, block, batch, geometry)


def kernel_row_block(matrix: Tensor, block: int, batch: int, geometry: Conv2dGeometry) -> Tensor:
    """View of the rows of ``matrix`` that belong to one block of the kernel."""
    out_height, out_width = geometry.windows.output_size(*geometry.input_size)
    first_row = block * geometry.windows.dilation[0] * batch * out_width
    return matrix.narrow(1, first_row, batch * out_height * out_width)


def weight_to_gemm(w: Tensor, geometry: Conv2dGeometry) -> Sequence[Tensor]:
    """w_(P−p)(Q−q)rk for each block of the kernel as matrices with one column for each output channel.

    Each has the shape (groups, entries of the block, C_out / groups).
    """
    if geometry.flip_kernel:
        w = w.flip(0, 1)
    kernel_height, kernel_width, in_channels, out_channels = constant_shape(w)
    block_height = gemm_window(geometry, in_channels * geometry.groups).kernel_size[0]
    w = w.reshape(kernel_height * kernel_width * in_channels, geometry.groups, out_channels // geometry.groups)
    return torch.split(w.transpose(0, 1), block_height * kernel_width * in_channels, 1)


def gemm_to_weight(matrices: Tensor, geometry: Conv2dGeometry) -> Tensor:
    """The inverse of :func:`weight_to_gemm`, with all blocks in one matrix.

    (..., groups, kH·kW·C_in / groups, C_out / groups) to (..., kH, kW, C_in / groups, C_out).
    """
    (*batch, groups, depth, out_channels), (kernel_height, kernel_width) = (
        matrices.shape,
        geometry.windows.kernel_size,
    )
    in_channels = depth // (kernel_height * kernel_width)
    w = matrices.transpose(-3, -2).reshape(*batch, kernel_height, kernel_width, in_channels, groups * out_channels)
    return w.flip(-4, -3) if geometry.flip_kernel else w


def output_to_gemm(z: Tensor, window: Windows, geometry: Conv2dGeometry) -> Tensor:
    """(N, H_out, W_out, C_out) as (groups, N·H_out·W_out, C_out / groups), rows as :func:`im2col` has them."""
    groups, out_channels = geometry.groups, z.shape[3]
    z = swap_batch_rows(z, window, geometry).reshape(z.shape[:3].numel(), groups, out_channels // groups)
    return z.transpose(0, 1)
