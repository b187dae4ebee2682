"""The gradient of a convolution's weight on CUDA, but for depthwise ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from manualgrad.cuda.conv2d_operands import (
    ReLUDerivative,
    batch_last,
    in_the_same_order,
    needs_wide_offsets,
    pack_images,
)
from manualgrad.cuda.conv2d_tiles import Tile, grad_weight_tile, num_multiprocessors, wants_batch_last
from manualgrad.cuda.conv2d_windows import window_constants
from manualgrad.cuda.kernels import conv2d_grad_weight as kernels
from manualgrad.cuda.kernels.conv2d_sum_parts import conv2d_sum_grad_weight
from manualgrad.cuda.launch import Launcher


def grad_weight(
    launch: Launcher, grad_w: Tensor, grad_b: Tensor | None, g: Tensor, x: Tensor, geometry: Any, precision: str,
    derivative: ReLUDerivative | None = None,
) -> None:  # fmt: skip
    """Compute ``grad_w``, W(g, x) of equation (3), and ``grad_b``, the sum of g, if given; of one image or more.

    If g is the gradient of R(z), with whose z :func:`copies_with_relu`, both are computed from that of z."""
    (out_channels, channels, kernel_height, kernel_width), groups = grad_w.shape, geometry.groups
    rows = out_channels // groups
    by_batch, tile, tiles, programs = _plan(grad_w.shape, g.shape[0], groups, precision, g.device)
    tiles += 0 if grad_b is None else -(-rows // tile.rows)
    constants = {
        "C": channels, "K": rows, "GROUPS": groups, "KH": kernel_height, "KW": kernel_width,
        **window_constants(geometry.windows), "CHANNELS_LAST": geometry.channels_last, "FLIP": geometry.flip_kernel,
        "PRECISION": precision, "BM": tile.rows, "BN": tile.columns, "BK": tile.depth,
        "num_warps": tile.num_warps, "num_stages": tile.num_stages,
    }  # fmt: skip
    if by_batch:
        _by_batch(launch, grad_w, grad_b, g, x, derivative, tile, tiles, geometry, programs, constants)
    else:
        assert derivative is None
        _by_position(launch, grad_w, grad_b, g, x, tile, tiles, geometry, programs, constants)


def copies_with_relu(g: Tensor, z: Tensor, x: Tensor, geometry: Any, precision: str) -> bool:
    """Return True if the first launch of :func:`grad_weight` copies g, and can read ``z`` of a derivative."""
    groups, kernel_size = geometry.groups, geometry.windows.kernel_size
    shape = torch.Size((g.shape[1], x.shape[1] // groups, *kernel_size))
    return _plan(shape, g.shape[0], groups, precision, g.device)[0] and in_the_same_order(g, z)


def is_split(shape: torch.Size, batch: int, groups: int, precision: str, device: torch.device) -> bool:
    """Return True if the sum of a weight's gradient of this shape may be split into parts."""
    return _plan(shape, batch, groups, precision, device)[3] > 1


def _plan(
    shape: torch.Size, batch: int, groups: int, precision: str, device: torch.device
) -> tuple[bool, Tile, int, int]:
    """Return whether the batch becomes last, the tile, the number of tiles of a group, and the programs of each."""
    out_channels, channels, kernel_height, kernel_width = shape
    taps = kernel_height * kernel_width
    rows, columns = out_channels // groups, channels * taps
    by_batch = wants_batch_last(precision, batch, channels, taps)
    tile = grad_weight_tile(precision, by_batch, rows, columns, channels)
    tiles = -(-rows // tile.rows) * -(-columns // tile.columns)
    return by_batch, tile, tiles, int(tile.waves * num_multiprocessors(device) / (tiles * groups))


def _by_position(
    launch: Launcher, grad_w: Tensor, grad_b: Tensor | None, g: Tensor, x: Tensor, tile: Tile, tiles: int,
    geometry: Any, programs: int, constants: dict[str, Any],
) -> None:  # fmt: skip
    """Run the product that reads g and x as they are, channels_last."""
    gradients, images = pack_images(launch, g, x, x_at_any_step=bool(grad_w.shape[1] % tile.columns))
    (batch, _, out_height, out_width), (height, width) = g.shape, x.shape[2:]
    positions = batch * out_height * out_width
    chunk, parts = split_sum(positions, min(programs, -(-positions // (4 * tile.depth))), tile.depth)
    parts_w, parts_b = new_parts(grad_w, parts), None if grad_b is None else new_parts(grad_b, parts)
    launch(
        kernels.conv2d_grad_weight, (tiles, parts, geometry.groups), parts_w, parts_b, gradients.tensor,
        images.tensor, positions, chunk, height, width, out_height, out_width, gradients.batch_step,
        images.batch_step, G_PIXEL=gradients.pixel_step, X_PIXEL=images.pixel_step, X_CHANNEL=images.channel_step,
        PARTS=parts, WIDE=needs_wide_offsets(gradients.tensor, images.tensor, positions=positions),
        **constants,
    )  # fmt: skip
    sum_parts(launch, (grad_w, parts_w), (grad_b, parts_b), parts, geometry)


def _by_batch(
    launch: Launcher, grad_w: Tensor, grad_b: Tensor | None, g: Tensor, x: Tensor, derivative: ReLUDerivative | None,
    tile: Tile, tiles: int, geometry: Any, programs: int, constants: dict[str, Any],
) -> None:  # fmt: skip
    """Run the product that reads copies with the batch last."""
    copies = batch_last(launch, g, x, tile.depth, constants["PRECISION"], derivative)
    (_, _, out_height, out_width), (height, width) = g.shape, x.shape[2:]
    blocks = copies.batch // tile.depth
    total = out_height * out_width * blocks
    chunk, parts = split_sum(total, min(programs, -(-total // 4)), 1)
    parts_w, parts_b = new_parts(grad_w, parts), None if grad_b is None else new_parts(grad_b, parts)
    launch(
        kernels.conv2d_grad_weight_batch_last, (tiles, parts, geometry.groups), parts_w, parts_b, copies.g, copies.x,
        total, chunk, height, width, out_width, blocks, copies.batch, *copies.g_steps, *copies.x_steps, copies.low,
        PARTS=parts, WIDE=needs_wide_offsets(copies.g, copies.x), **constants,
    )  # fmt: skip
    sum_parts(launch, (grad_w, parts_w), (grad_b, parts_b), parts, geometry)


def split_sum(terms: int, parts: int, multiple: int) -> tuple[int, int]:
    """Return the terms of each part, a multiple of ``multiple``, and the number of parts, at most about ``parts``."""
    wanted = -(-terms // max(1, parts))
    chunk = -(-wanted // multiple) * multiple
    return chunk, -(-terms // chunk)


def new_parts(grad: Tensor, parts: int) -> Tensor:
    """Memory for the parts of a sum; ``grad`` itself if there is one."""
    if parts == 1:
        return grad
    return torch.empty(parts * grad.numel(), dtype=torch.float32, device=grad.device)


def sum_parts(
    launch: Launcher, weight: tuple[Tensor, Tensor], bias: tuple[Tensor | None, Tensor | None], parts: int,
    geometry: Any,
) -> None:  # fmt: skip
    """Sum the parts of the weight's gradient, and of the bias's if there is one; each is a gradient and its parts."""
    if parts == 1:
        return
    (grad_w, parts_w), (grad_b, parts_b) = weight, bias
    numel, (out_channels, channels, kernel_height, kernel_width) = grad_w.numel(), grad_w.shape
    block = 1024 if numel > 2**19 else 256 if numel > 2**16 else 64
    programs = -(-numel // block) + (0 if grad_b is None else -(-out_channels // block))
    launch(
        conv2d_sum_grad_weight, (programs,), grad_w, parts_w, numel, parts, grad_b, parts_b, out_channels,
        KH=kernel_height, KW=kernel_width, C=channels, CHANNELS_LAST=geometry.channels_last,
        FLIP=geometry.flip_kernel, BLOCK=block, num_warps=max(1, block // 128),
    )  # fmt: skip
