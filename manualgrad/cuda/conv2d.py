"""Convolution and its two gradients on CUDA: the formulas of ``ops/conv2d.py`` in PyTorch's layout, by kernels.

``geometry`` is a ``Conv2dGeometry`` of ``ops/conv2d_geometry.py``. A function ``unsupported_...`` returns the reason
why its kernel does not compute the arguments, "" if it does.

Launches: forward takes two, the weight in the order of the product and the product, and a third where the sum is
split. So does the input's gradient, whose sum is not split where that of the weight's gradient is. The gradients of
weight and bias take two or three: copies, product, sum of the parts. A backward takes five at most.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from manualgrad.cuda import conv2d_depthwise as depthwise
from manualgrad.cuda.conv2d_operands import INT32_NUMEL, Images, ReLUDerivative, needs_wide_offsets, pack, span
from manualgrad.cuda.conv2d_precision import precision_of
from manualgrad.cuda.conv2d_tiles import gather_tile, next_power_of_2, num_multiprocessors
from manualgrad.cuda.conv2d_weight_gradient import grad_weight, is_split
from manualgrad.cuda.conv2d_windows import window_constants
from manualgrad.cuda.kernels.conv2d_gather_gemm import conv2d_gather_gemm
from manualgrad.cuda.kernels.conv2d_sum_parts import conv2d_sum_output
from manualgrad.cuda.launch import MAX_GRID, Launcher
from manualgrad.cuda.tensor_checks import unsupported_tensors


def unsupported_conv2d_forward(x: Tensor, w: Tensor, b: Tensor | None, geometry: Any) -> str:
    """Return the reason why :func:`conv2d_forward` does not support the arguments, "" if it does."""
    return _unsupported_images(x, geometry) or _unsupported_weight(w, geometry) or unsupported_tensors(x, w, b)


def unsupported_conv2d_grad_input(g: Tensor, w: Tensor, geometry: Any) -> str:
    """Return the reason why :func:`conv2d_grad_input` does not support the arguments, "" if it does."""
    return _unsupported_output(g, geometry) or _unsupported_weight(w, geometry) or unsupported_tensors(g, w)


def unsupported_conv2d_grad_weight(g: Tensor, x: Tensor, geometry: Any) -> str:
    """Return the reason why :func:`conv2d_grad_weight` does not support the arguments, "" if it does."""
    return _unsupported_output(g, geometry) or _unsupported_images(x, geometry) or unsupported_tensors(g, x)


def _unsupported_images(x: Tensor, geometry: Any) -> str:
    return "" if x.shape[2:] == geometry.input_size else "the geometry is not that of the images"


def _unsupported_output(g: Tensor, geometry: Any) -> str:
    (first, second), groups = geometry.windows.stride, geometry.groups
    if g.shape[2:] != geometry.windows.output_size(*geometry.input_size):
        return "the geometry is not that of the gradient"
    if g.shape[1] > MAX_GRID and groups > 1:
        return "there are too many channels in groups"
    return "" if first * second * 4 <= MAX_GRID else "the stride is too large"


def _unsupported_weight(w: Tensor, geometry: Any) -> str:
    if w.shape[2:] != geometry.windows.kernel_size:
        return "the geometry is not that of the weight"
    if w.shape[0] > MAX_GRID and geometry.groups > 1:
        return "there are too many channels in groups"
    return "" if 4 * max(w.numel(), span(w)) < INT32_NUMEL else "the weight is too large"


def conv2d_forward(
    launch: Launcher, x: Tensor, w: Tensor, b: Tensor | None, geometry: Any, *, relu: bool = False
) -> Tensor:
    """C(x, w) + b of equations (1) and (17): (N, C_out, H_out, W_out), in the memory format of the geometry.

    With ``relu`` R(C(x, w) + b)."""
    y = new_output(x, w, geometry)
    compute_conv2d(launch, y, x, w, b, geometry, relu=relu)
    return y


def new_output(x: Tensor, w: Tensor, geometry: Any) -> Tensor:
    """Memory for the result of :func:`conv2d_forward`."""
    return new_result(x, w.shape[0], geometry.windows.output_size(*geometry.input_size), geometry)


def compute_conv2d(
    launch: Launcher, y: Tensor, x: Tensor, w: Tensor, b: Tensor | None, geometry: Any, *, relu: bool,
    sign: Tensor | None = None,
) -> None:  # fmt: skip
    """Compute ``y``, of :func:`new_output`, and if given ``sign``, int8 in y's order: −1, 0 or 1; 1 for NaN.

    It is that of C(x, w) + b in y's dtype."""
    if depthwise.is_depthwise(w.shape[1], geometry):
        depthwise.forward(launch, y, x, w, b, geometry, relu, sign)
    elif y.numel():
        gather_gemm(launch, y, x, w, b, geometry, backward=False, relu=relu, sign=sign)


def conv2d_grad_input(launch: Launcher, g: Tensor, w: Tensor, geometry: Any) -> Tensor:
    """X(g, w) of equation (2): (N, C_in, H, W), in the memory format of the geometry.

    Pixels near the border have windows outside of z. The formula leaves their products out, and so do the kernels:
    the product of an infinite weight would be 0 · w, which is NaN."""
    grad_x = new_result(g, w.shape[1] * geometry.groups, geometry.input_size, geometry)
    if depthwise.is_depthwise(w.shape[1], geometry):
        return depthwise.grad_input(launch, grad_x, g, w, geometry)
    if grad_x.numel():
        gather_gemm(launch, grad_x, g, w, None, geometry, backward=True)
    return grad_x


def conv2d_grad_weight(
    launch: Launcher, g: Tensor, x: Tensor, geometry: Any, *, derivative: ReLUDerivative | None = None
) -> Tensor:
    """W(g, x) of equation (3): (C_out, C_in / groups, kH, kW), in the memory format of the geometry.

    If g is the gradient of R(z), with whose z it ``copies_with_relu``, W(δ, x) for the gradient δ of z."""
    return _grad_weight(launch, g, x, geometry, None, derivative)


def unsupported_conv2d_grad_weight_and_bias(g: Tensor, x: Tensor, geometry: Any) -> str:
    """Return the reason why :func:`conv2d_grad_weight_and_bias` does not support the arguments, "" if it does."""
    if depthwise.is_depthwise(x.shape[1] // geometry.groups, geometry):
        return "the kernel for depthwise convolutions does not sum the bias's gradient"
    return unsupported_conv2d_grad_weight(g, x, geometry)


def conv2d_grad_weight_and_bias(
    launch: Launcher, g: Tensor, x: Tensor, geometry: Any, *, derivative: ReLUDerivative | None = None
) -> tuple[Tensor, Tensor]:
    """:func:`conv2d_grad_weight`, and the sum of g, or of δ, of equation (17): (C_out,)."""
    grad_b = g.new_empty(g.shape[1])
    return _grad_weight(launch, g, x, geometry, grad_b, derivative), grad_b


def _grad_weight(
    launch: Launcher, g: Tensor, x: Tensor, geometry: Any, grad_b: Tensor | None, derivative: ReLUDerivative | None
) -> Tensor:
    channels = x.shape[1] // geometry.groups
    memory_format = torch.channels_last if geometry.channels_last else torch.contiguous_format
    shape = (g.shape[1], channels, *geometry.windows.kernel_size)
    grad_w = torch.empty(shape, dtype=g.dtype, device=g.device, memory_format=memory_format)
    if not g.shape[0]:
        if grad_b is not None:
            grad_b.zero_()
        return grad_w.zero_()
    if depthwise.is_depthwise(channels, geometry):
        return depthwise.grad_weight(launch, grad_w, g, x, geometry)
    grad_weight(launch, grad_w, grad_b, g, x, geometry, precision_of(g), derivative)
    return grad_w


def new_result(x: Tensor, channels: int, size: tuple[int, int], geometry: Any) -> Tensor:
    """Memory for the (N, channels, *size) numbers of a result, in the memory format of the geometry."""
    memory_format = torch.channels_last if geometry.channels_last else torch.contiguous_format
    shape = (x.shape[0], channels, *size)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format)


def gather_gemm(
    launch: Launcher, y: Tensor, x: Tensor, w: Tensor, b: Tensor | None, geometry: Any, *, backward: bool,
    relu: bool = False, sign: Tensor | None = None, derivative: ReLUDerivative | None = None,
) -> Images:  # fmt: skip
    """Compute ``y``, of one image or more: z of equation (1) for images x, or with ``backward`` (2) for gradients x.

    With ``relu`` y is R(z), and ``sign``, if given, gets the sign of z. If x is the gradient of R(z), with the
    ``derivative``, y is computed from that of z.

    Returns:
        The images or gradients as the product reads them; with ``derivative`` the gradient of z, a new tensor,
        channels_last.
    """
    windows, groups, precision = geometry.windows, geometry.groups, precision_of(x)
    (batch, in_channels, height, width), (_, out_channels, out_height, out_width) = x.shape, y.shape
    channels, columns, taps = in_channels // groups, out_channels // groups, w.shape[2] * w.shape[3]
    phases = windows.stride if backward else (1, 1)
    phase_height, phase_width = -(-out_height // phases[0]), -(-out_width // phases[1])
    positions = batch * phase_height * phase_width
    tile = gather_tile(precision, positions, columns, channels * taps, num_multiprocessors(x.device))
    if backward and is_split(w.shape, batch, groups, precision, x.device):
        tile = replace(tile, parts=1)  # one sum of parts in a backward: five launches
    flat = channels % tile.depth != 0 and channels < 64 and taps > 1
    # More than one block of weights whose channels are no multiple of 16 bytes.
    joined = flat and phases == (1, 1) and channels * taps > tile.depth and channels * x.element_size() % 16 != 0
    weight, images = pack(
        launch, w, x, groups, precision, flip=geometry.flip_kernel, transpose=backward, flat=flat, joined=joined,
        derivative=derivative,
    )  # fmt: skip
    wide = needs_wide_offsets(images.tensor, y)
    numel, split = y.numel(), tile.parts > 1
    result = torch.empty(tile.parts * numel, dtype=torch.float32, device=y.device) if split else y
    num_tiles = -(-positions // tile.rows) * -(-columns // tile.columns)
    bias_step = 0 if b is None else b.stride(0)
    flag_block = min(1024, next_power_of_2(weight.num_flags)) if backward else 0
    launch(
        conv2d_gather_gemm, (num_tiles, groups, phases[0] * phases[1] * tile.parts),
        result, images.tensor, weight.tensor, None if split else b, None if split else sign, positions, height,
        width, phase_height, phase_width, out_height, out_width, images.batch_step, weight.low, weight.flags,
        weight.num_flags, numel, bias_step,
        C=channels, K=columns, GROUPS=groups, KH=w.shape[2], KW=w.shape[3], W_ROW=weight.row,
        **window_constants(windows), BACKWARD=backward, X_PIXEL=images.pixel_step, X_CHANNEL=images.channel_step,
        CHANNELS_LAST=geometry.channels_last, FLAT=flat, JOINED=joined, WIDE=wide, PRECISION=precision,
        PARTS=tile.parts, BM=tile.rows, BN=tile.columns, BK=tile.depth, FLAG_BLOCK=flag_block,
        RELU=relu and not split, num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
    if split:
        block = 1024 if numel > 2**19 else 256 if numel > 2**16 else 64
        pixels = 1 if geometry.channels_last else out_height * out_width
        launch(
            conv2d_sum_output, (-(-numel // block),), y, result, b, sign, numel, tile.parts, bias_step, out_channels,
            pixels, RELU=relu, BLOCK=block, num_warps=max(1, block // 128),
        )  # fmt: skip
    return images
