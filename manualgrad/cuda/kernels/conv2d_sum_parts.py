"""The sum of the parts that the programs of a product computed, always in the same order."""

import triton
import triton.language as tl

from manualgrad.cuda.kernels.conv2d_grad_weight import weight_offset
from manualgrad.cuda.kernels.relu import relu, sign_of


@triton.jit
def sum_parts(parts, at, inside, NUMEL, NUM_PARTS, BLOCK: tl.constexpr):
    """The sum over the NUM_PARTS arrays of NUMEL numbers in ``parts``, at the places ``at``."""
    total = tl.zeros([BLOCK], tl.float32)
    for part in range(NUM_PARTS):
        total += tl.load(parts + part * NUMEL + at, mask=inside, other=0.0)
    return total


@triton.jit
def conv2d_sum_output(
    y, parts, bias, sign, NUMEL, NUM_PARTS, BIAS_STRIDE, CHANNELS, PIXELS, RELU: tl.constexpr, BLOCK: tl.constexpr
):
    """y, whose channel changes every PIXELS numbers, plus the bias; with RELU its ReLU, and ``sign`` if given."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < NUMEL
    total = sum_parts(parts, at, inside, NUMEL, NUM_PARTS, BLOCK)
    if bias is not None:
        channel = (at // PIXELS) % CHANNELS
        total += tl.load(bias + channel * BIAS_STRIDE, mask=inside, other=0.0).to(tl.float32)  # eq. (17)
    if RELU:
        if sign is not None:
            tl.store(sign + at, sign_of(total.to(y.dtype.element_ty).to(tl.float32)), mask=inside)
        total = relu(total)
    tl.store(y + at, total.to(y.dtype.element_ty), mask=inside)


@triton.jit
def conv2d_sum_grad_weight(
    grad_w, parts, NUMEL, NUM_PARTS, grad_b, bias_parts, CHANNELS, KH: tl.constexpr, KW: tl.constexpr,
    C: tl.constexpr, CHANNELS_LAST: tl.constexpr, FLIP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """grad_w of equation (3), from parts in the order (C_out, KH, KW, C), and in the programs after these grad_b."""
    pid = tl.program_id(0)
    if grad_b is not None:
        programs = tl.cdiv(NUMEL, BLOCK)
        if pid >= programs:
            at = (pid - programs) * BLOCK + tl.arange(0, BLOCK)
            inside = at < CHANNELS
            total = sum_parts(bias_parts, at, inside, CHANNELS, NUM_PARTS, BLOCK)
            tl.store(grad_b + at, total.to(grad_b.dtype.element_ty), mask=inside)
            return
    at = pid * BLOCK + tl.arange(0, BLOCK)
    inside = at < NUMEL
    total = sum_parts(parts, at, inside, NUMEL, NUM_PARTS, BLOCK)
    E: tl.constexpr = KH * KW * C
    out = weight_offset(at // E, at % E, KH, KW, C, CHANNELS_LAST, FLIP)
    tl.store(grad_w + out, total.to(grad_w.dtype.element_ty), mask=inside)
