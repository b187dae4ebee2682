"""The operands of a convolution's products, read in place or copied into the order that the kernels read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from manualgrad.cuda.conv2d_tiles import next_power_of_2
from manualgrad.cuda.kernels import conv2d_pack as kernels
from manualgrad.cuda.launch import Launcher

# Images with up to this many channels are read in place in either memory format: each number is addressed by itself.
FEW_CHANNELS = 4
# From this many numbers on offsets take 64 bits. Programs round numbers of positions up, by less than 2^16.
INT32_NUMEL = 2**31 - 2**16
PACK_TILE = {"BC": 32, "BP": 64}


@dataclass(frozen=True)
class Images:
    """A tensor (N, C, H, W) as kernels read it.

    Its strides are batch_step · pixel_step, channel_step, W · pixel_step and pixel_step."""

    tensor: Tensor
    batch_step: int
    pixel_step: int
    channel_step: int


@dataclass(frozen=True)
class PackedWeight:
    """A weight in the order (C_out, kH, kW, C), its low parts ``low`` numbers after the others, if it has such.

    A channel's weights are ``row`` numbers after those of the one before. A transposed weight has ``num_flags``
    numbers at ``flags``: 1 for a piece with an infinite or NaN weight, or 0."""

    tensor: Tensor
    row: int
    low: int = 0
    flags: int = 0
    num_flags: int = 0


@dataclass(frozen=True)
class ReLUDerivative:
    """∂R/∂z of equation (10), by which a copy of a gradient of R(z) becomes that of z.

    ``z`` is the int8 sign of z, or R(z) if the derivative ``subgradient`` at 0 is 0; it has z's shape."""

    z: Tensor
    subgradient: float


def span(x: Tensor) -> int:
    """Numbers from the first to the last of ``x`` in memory, those in between included."""
    return 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))


def needs_wide_offsets(*tensors: Tensor, positions: int = 0) -> bool:
    """Return True if offsets in one of the tensors, or the number of ``positions``, do not fit into 32 bits.

    An expanded tensor may have more positions than numbers."""
    return positions >= INT32_NUMEL or any(span(x) >= INT32_NUMEL for x in tensors)


def images_in_place(x: Tensor, any_channel_step: bool) -> Images | None:
    """Return ``x`` (N, C, H, W) as it is, or None if kernels cannot read it so.

    Its pixels must lie at equal distances. Channels must be neighbours, unless ``any_channel_step``: kernels that
    compute each number's address read few channels at any distance."""
    batch, channels, height, width = x.shape
    batch_stride, channel_step, row_stride, pixel_step = x.stride()
    if width == 1:
        pixel_step = row_stride
        if height == 1:
            pixel_step = channels
    elif height > 1 and row_stride != width * pixel_step:
        return None
    if channels == 1:
        channel_step = 1
    if batch == 1:
        batch_stride = 0
    if pixel_step == 0 or batch_stride % pixel_step:
        return None
    if channel_step != 1 and not (any_channel_step and channels <= FEW_CHANNELS):
        return None
    return Images(x, batch_stride // pixel_step, pixel_step, channel_step)


def _new_packed(x: Tensor) -> Images:
    batch, channels, height, width = x.shape
    return Images(x.new_empty(batch * channels * height * width), height * width, channels, 1)


def _num_programs(x: Tensor) -> int:
    batch, channels, height, width = x.shape
    return batch * -(-channels // PACK_TILE["BC"]) * -(-(height * width) // PACK_TILE["BP"])


def pack_images(launch: Launcher, g: Tensor, x: Tensor, *, x_at_any_step: bool) -> tuple[Images, Images]:
    """Return both tensors as ``conv2d_grad_weight`` reads them, those that have to be copied by one launch.

    ``x_at_any_step`` is True if the kernel computes the address of each number of x."""
    in_place = images_in_place(g, False), images_in_place(x, x_at_any_step)
    packed_g, packed_x = (images or _new_packed(t) for images, t in zip(in_place, (g, x), strict=True))
    copies = [
        (images.tensor, t)
        for images, t, kept in zip((packed_g, packed_x), (g, x), in_place, strict=True)
        if kept is None
    ]
    if copies:
        (a_out, a), (b_out, b) = copies[0], copies[1] if len(copies) == 2 else (None, None)
        others = a if b is None else b
        launch(
            kernels.conv2d_pack_images, (sum(_num_programs(t) for _, t in copies),), a_out, a, b_out, b,
            _num_programs(a), a.shape[0], *a.shape[1:], *a.stride(), *others.shape[1:], *others.stride(), **PACK_TILE,
        )  # fmt: skip
    return packed_g, packed_x


def pack(
    launch: Launcher, w: Tensor, x: Tensor, groups: int, precision: str, *, flip: bool, transpose: bool, flat: bool,
    joined: bool, derivative: ReLUDerivative | None = None,
) -> tuple[PackedWeight, Images]:  # fmt: skip
    """Return the weight and the images as ``conv2d_gather_gemm`` reads them, by one launch, or none.

    Args:
        w: (C_out, C_in / groups, kH, kW).
        x: (N, C, H, W).
        flip: True reverses rows and columns of the kernel.
        transpose: True exchanges input and output channels within each group.
        flat: True if the product computes the address of each number of x.
        joined: True if the weights of a channel get zeros behind them, to a multiple of 16 numbers.
        derivative: that of R if x is the gradient of R(z); the images are then the gradient of z, channels_last.
    """
    out_channels, channels, kernel_height, kernel_width = w.shape
    taps = kernel_height * kernel_width
    flip = flip and taps > 1
    images = images_in_place(x, flat) if derivative is None else None
    if images is not None and precision == "half" and not (flip or transpose) and _is_packed(w):
        return PackedWeight(w, channels * taps), images
    rows, row = (channels * groups, out_channels // groups * taps) if transpose else (out_channels, channels * taps)
    row = -(-row // 16) * 16 if joined else row
    aligned = -(-rows * row // 16) * 16  # so that low parts are aligned as the others are
    low = aligned if precision == "3xtf32" else 0
    group_channels = out_channels // groups
    tile = {"BK": min(32, next_power_of_2(group_channels)), "BC": min(32, next_power_of_2(channels))}
    programs = -(-group_channels // tile["BK"]) * -(-channels // tile["BC"]) * taps * groups
    flags, num_flags = low + aligned, programs if transpose else 0
    weight = PackedWeight(w.new_empty(flags + num_flags), row, low, flags, num_flags)
    copied = None if images is not None else x
    z, subgradient = (None, 0.0) if derivative is None else (derivative.z, derivative.subgradient)
    z_strides = (0, 0, 0, 0) if z is None else z.stride()
    packed = images or _new_packed(x)
    launch(
        kernels.conv2d_pack, (programs + (0 if copied is None else _num_programs(x)),),
        weight.tensor, w, None if copied is None else packed.tensor, copied, z, programs, *w.stride(), low,
        flags, *x.shape, *x.stride(), *z_strides, C=channels, K=group_channels, KH=kernel_height,
        KW=kernel_width, ROW=row, FLIP=flip, TRANSPOSE=transpose, PRECISION=precision, **tile,
        IMAGE_BC=PACK_TILE["BC"], IMAGE_BP=PACK_TILE["BP"], SUBGRADIENT=subgradient,
    )  # fmt: skip
    return weight, packed


def _is_packed(w: Tensor) -> bool:
    _, channels, kernel_height, kernel_width = w.shape
    order = (kernel_height * kernel_width * channels, 1, kernel_width * channels, channels)
    return all(size == 1 or a == b for size, a, b in zip(w.shape, w.stride(), order, strict=True))


@dataclass(frozen=True)
class BatchLast:
    """g and x with the batch as last, contiguous dimension, padded by zeros to ``batch`` images.

    A pixel and a channel of g are g_steps · batch numbers from the next, those of x x_steps · batch. The low parts of
    x follow ``low`` numbers after the others."""

    g: Tensor
    x: Tensor
    g_steps: tuple[int, int]
    x_steps: tuple[int, int]
    batch: int
    low: int


def batch_last(
    launch: Launcher, g: Tensor, x: Tensor, depth: int, precision: str, derivative: ReLUDerivative | None = None
) -> BatchLast:
    """Copy g (N, C_out, H_out, W_out) and x (N, C_in, H, W) by one launch. A block of the sum has ``depth`` images.

    Images whose numbers do not lie together in one of the two memory formats are copied once more. If g is the
    gradient of R(z), and images of the derivative's z lie :func:`in_the_same_order`, the copy is that of z."""
    (g, g_steps), (x, x_steps) = _whole_images(g), _whole_images(x)
    images, rounded = g.shape[0], -(-g.shape[0] // depth) * depth
    g_numel, x_numel = g[0].numel(), x[0].numel()
    low = x_numel * rounded if precision == "3xtf32" else 0
    copies = BatchLast(
        g.new_empty(g_numel * rounded), x.new_empty(low + x_numel * rounded), g_steps, x_steps, rounded, low
    )
    tile = {"BN": 32, "BL": 128}
    rows = -(-rounded // tile["BN"])
    z, subgradient = (None, 0.0) if derivative is None else (derivative.z, derivative.subgradient)
    g_programs, x_programs = rows * -(-g_numel // tile["BL"]), rows * -(-x_numel // tile["BL"])
    launch(
        kernels.conv2d_batch_last, (g_programs + x_programs,), copies.g, g, copies.x, x, z, g_programs, images,
        g_numel, g.stride(0), 0 if z is None else z.stride(0), x_numel, x.stride(0), rounded, low,
        PRECISION=precision, SUBGRADIENT=subgradient, **tile,
    )  # fmt: skip
    return copies


def in_the_same_order(g: Tensor, z: Tensor) -> bool:
    """Return True if images of ``g`` and ``z`` are in one piece each, in the same memory format."""
    return any(
        g[:1].is_contiguous(memory_format=memory_format) and z[:1].is_contiguous(memory_format=memory_format)
        for memory_format in (torch.channels_last, torch.contiguous_format)
    )


def _whole_images(x: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Return ``x``, a copy if its images are not in one piece each, and the distances of its pixels and channels."""
    _, channels, height, width = x.shape
    formats: dict[Any, tuple[int, int]] = {
        torch.channels_last: (channels, 1), torch.contiguous_format: (1, height * width)
    }  # fmt: skip
    for memory_format, steps in formats.items():
        if x[:1].is_contiguous(memory_format=memory_format):
            return x, steps
    return x.contiguous(memory_format=torch.channels_last), formats[torch.channels_last]
