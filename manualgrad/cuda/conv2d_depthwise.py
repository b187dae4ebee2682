"""Depthwise convolution and its gradients on CUDA. Tensors are read and written in place, whatever their strides."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from manualgrad.cuda.conv2d_operands import needs_wide_offsets
from manualgrad.cuda.conv2d_tiles import next_power_of_2, num_multiprocessors
from manualgrad.cuda.conv2d_weight_gradient import new_parts, split_sum, sum_parts
from manualgrad.cuda.conv2d_windows import window_constants
from manualgrad.cuda.kernels import conv2d_depthwise as kernels
from manualgrad.cuda.launch import Launcher

TILE_NUMEL = 2048  # positions times channels of a program
MAX_TAPS = 16  # of a program for the weight's gradient


def is_depthwise(channels: int, geometry: Any) -> bool:
    """Return True if each group has one input channel, and there are groups."""
    return channels == 1 and geometry.groups > 1


def forward(
    launch: Launcher, y: Tensor, x: Tensor, w: Tensor, b: Tensor | None, geometry: Any, relu: bool,
    sign: Tensor | None,
) -> Tensor:  # fmt: skip
    """Compute ``y``, z of equation (1), or with ``relu`` R(z), and ``sign``, if given: that of z, of y's strides."""
    bias_step = 0 if b is None else b.stride(0)
    sizes = (*x.shape[2:], *y.shape[2:])
    strides = (*x.stride(), *_steps(w), bias_step)
    return _run(launch, kernels.conv2d_depthwise, y, (x, w, b, sign), sizes, strides, geometry, RELU=relu)


def grad_input(launch: Launcher, grad_x: Tensor, g: Tensor, w: Tensor, geometry: Any) -> Tensor:
    """Compute ``grad_x`` of equation (2)."""
    sizes = (*grad_x.shape[2:], *g.shape[2:])
    strides = (*g.stride(), *_steps(w))
    return _run(launch, kernels.conv2d_depthwise_grad_input, grad_x, (g, w), sizes, strides, geometry)


def _run(
    launch: Launcher, kernel: Any, result: Tensor, operands: tuple[Tensor | None, ...], sizes: tuple[int, ...],
    strides: tuple[int, ...], geometry: Any, **constants: bool,
) -> Tensor:  # fmt: skip
    images, w = operands[:2]
    assert images is not None and w is not None
    channels, positions = result.shape[1], result.numel() // result.shape[1]
    tile = _tile(channels, TILE_NUMEL, geometry)
    launch(
        kernel, (-(-positions // tile["BM"]), -(-channels // tile["BC"])), result, *operands, positions, *sizes,
        *strides, *result.stride(), channels, WIDE=needs_wide_offsets(images, result), **tile,
        **_constants(geometry, w.shape[0]), **constants,
    )  # fmt: skip
    return result


def grad_weight(launch: Launcher, grad_w: Tensor, g: Tensor, x: Tensor, geometry: Any) -> Tensor:
    """Compute ``grad_w`` of equation (3), of one image or more."""
    channels, taps = grad_w.shape[0], grad_w.shape[2] * grad_w.shape[3]
    positions = g.numel() // channels
    taps_each = min(MAX_TAPS, next_power_of_2(taps))
    tile = _tile(channels, 2 * TILE_NUMEL // taps_each, geometry, max_channels=32)
    tiles, tap_blocks = -(-channels // tile["BC"]), -(-taps // taps_each)
    wanted = 4 * num_multiprocessors(g.device) // (tiles * tap_blocks)
    chunk, parts = split_sum(positions, min(wanted, -(-positions // (4 * tile["BM"]))), tile["BM"])
    result = new_parts(grad_w, parts)
    launch(
        kernels.conv2d_depthwise_grad_weight, (tiles, parts, tap_blocks), result, g, x, positions, chunk,
        *x.shape[2:], *g.shape[2:], *g.stride(), *x.stride(), channels,
        WIDE=needs_wide_offsets(g, x, positions=positions), PARTS=parts, TAPS=taps_each, **tile,
        **_constants(geometry, channels),
    )  # fmt: skip
    sum_parts(launch, (grad_w, result), (None, None), parts, geometry)
    return grad_w


def _steps(w: Tensor) -> tuple[int, int, int]:
    return w.stride(0), w.stride(2), w.stride(3)


def _tile(channels: int, numel: int, geometry: Any, max_channels: int = 64) -> dict[str, int]:
    """Positions and channels of a tile: neighbours in memory belong to neighbouring threads."""
    width = min(max_channels, next_power_of_2(channels)) if geometry.channels_last else 1
    return {"BM": max(1, min(numel, 1024 if width == 1 else numel) // width), "BC": width}


def _constants(geometry: Any, out_channels: int) -> dict[str, Any]:
    kernel_height, kernel_width = geometry.windows.kernel_size
    return {
        "MULTIPLIER": out_channels // geometry.groups, "KH": kernel_height, "KW": kernel_width,
        "FLIP": geometry.flip_kernel, **window_constants(geometry.windows),
    }  # fmt: skip
