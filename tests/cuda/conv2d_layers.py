"""Layers for the tests of convolution's kernels for CUDA, and the comparison with the formulas in float64."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from manualgrad.ops.conv2d import (
    conv2d_forward_nchw,
    conv2d_grad_input_nchw,
    conv2d_grad_weight_and_bias,
    conv2d_grad_weight_oihw,
)
from manualgrad.ops.conv2d_geometry import make_conv2d_geometry

PACK, GEMM, SUM = "conv2d_pack", "conv2d_gather_gemm", "conv2d_sum_output"
PACK_IMAGES, DIRECT, SUM_W = "conv2d_pack_images", "conv2d_grad_weight", "conv2d_sum_grad_weight"
COPIES, BATCH_LAST = "conv2d_batch_last", "conv2d_grad_weight_batch_last"
DEPTHWISE = "conv2d_depthwise", "conv2d_depthwise_grad_input", "conv2d_depthwise_grad_weight"


@dataclass(frozen=True)
class Layer:
    """A convolution, and the launches that it takes: forward, input's gradient, weight's gradient."""

    x: tuple[int, int, int, int]
    w: tuple[int, int, int, int]
    launches: tuple[list[str], list[str], list[str]]
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1
    channels_last: bool = True
    flip_kernel: bool = True
    bias: bool = True


LAYERS = {
    "few channels, taps and channels on one axis": Layer(
        (2, 5, 4, 5), (6, 5, 3, 3), ([PACK, GEMM], [PACK, GEMM], [DIRECT]), padding=1
    ),
    "padding at the bottom and right only": Layer(
        (1, 4, 3, 3), (4, 4, 2, 2), ([PACK, GEMM], [PACK, GEMM], [DIRECT]), padding="same"
    ),
    "contiguous, phases, correlation": Layer(
        (2, 32, 5, 4), (32, 32, 3, 2), ([PACK, GEMM], [PACK, GEMM], [PACK_IMAGES, DIRECT]),
        stride=2, padding=(1, 0), channels_last=False, flip_kernel=False,
    ),
    "tails of tiles": Layer(
        (2, 72, 2, 3), (70, 72, 1, 2), ([PACK, GEMM], [PACK, GEMM], [DIRECT]), bias=False
    ),
    "groups, stride, dilation": Layer(
        (1, 12, 8, 9), (6, 6, 3, 2), ([PACK, GEMM], [PACK, GEMM], [DIRECT]),
        stride=(3, 2), padding=(1, 0), dilation=(2, 3), groups=2,
    ),
    "1x1, more stride than kernel": Layer(
        (2, 5, 5, 4), (7, 5, 1, 1), ([PACK, GEMM], [PACK, GEMM], [DIRECT]), stride=(2, 3)
    ),
    "RGB, contiguous, batch last": Layer(
        (10, 3, 5, 5), (4, 3, 3, 3), ([PACK, GEMM], [PACK, GEMM], [COPIES, BATCH_LAST, SUM_W]), stride=2, padding=1,
        channels_last=False,
    ),
    "groups, two blocks of the batch": Layer(
        (34, 4, 2, 2), (6, 2, 2, 1), ([PACK, GEMM], [PACK, GEMM], [COPIES, BATCH_LAST]), groups=2
    ),
    "one channel, two parts": Layer((2, 1, 13, 12), (3, 1, 1, 2), ([PACK, GEMM], [PACK, GEMM], [DIRECT, SUM_W])),
    "one pixel": Layer((3, 5, 1, 1), (7, 5, 1, 1), ([PACK, GEMM], [PACK, GEMM], [DIRECT])),
    "depthwise": Layer(
        (3, 6, 13, 14), (6, 1, 3, 2), ([DEPTHWISE[0]], [DEPTHWISE[1]], [DEPTHWISE[2], SUM_W]), stride=(1, 2),
        padding=1, groups=6,
    ),
    "depthwise, two outputs a channel": Layer(
        (2, 2, 4, 3), (4, 1, 3, 6), ([DEPTHWISE[0]], [DEPTHWISE[1]], [DEPTHWISE[2]]), padding=(1, 5), dilation=(1, 2),
        groups=2, channels_last=False,
    ),
}  # fmt: skip


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Allow or forbid TF32 in convolutions."""
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "tf32" if allowed else "ieee"
    try:
        yield
    finally:
        torch.backends.cudnn.conv.fp32_precision = before


@contextmanager
def new_memory_is_nan() -> Iterator[None]:
    """Fill the memory of new tensors with NaN inside the block: a kernel that reads what none wrote gives NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def operands(
    layer: Layer, device: str, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor | None, Any]:
    """x, w, b and the geometry of the layer, x in its memory format."""
    memory_format = torch.channels_last if layer.channels_last else torch.contiguous_format
    x = torch.randn(layer.x).to(device, dtype).contiguous(memory_format=memory_format)
    w = torch.randn(layer.w).to(device, dtype)
    b = torch.randn(layer.w[0]).to(device, dtype) if layer.bias else None
    geometry = make_conv2d_geometry(
        x, w, b, layer.stride, layer.padding, layer.dilation, layer.groups, layer.flip_kernel, layer.channels_last
    )
    return x, w, b, geometry


def formula(function: Any, *args: Any) -> Tensor:
    """The result of the formula in float64."""
    return function.__wrapped__(*(x.double() if isinstance(x, Tensor) else x for x in args))


def assert_near(actual: Tensor, expected: Tensor, bound: float) -> float:
    """Compare by the norm of the difference; return the error."""
    error = float((actual.double() - expected).norm() / expected.norm())
    assert error < bound, f"an error of {error:.1e}, expected less than {bound:.1e}"
    return error


def check(layer: Layer, device: str, launches: list[str], dtype: torch.dtype, bound: float) -> list[float]:
    """Compare the three formulas of a layer, their strides and launches, and the bias's sum; return the errors."""
    x, w, b, geometry = operands(layer, device, dtype)
    memory_format = torch.channels_last if layer.channels_last else torch.contiguous_format
    errors, launched = [], []
    g = torch.randn(layer.x[0], layer.w[0], *geometry.windows.output_size(*geometry.input_size)).to(device, dtype)
    g = g.contiguous(memory_format=memory_format)
    for function, args in (
        (conv2d_forward_nchw, (x, w, b)), (conv2d_grad_input_nchw, (g, w)), (conv2d_grad_weight_oihw, (g, x))
    ):  # fmt: skip
        launches.clear()
        has_bias = layer.bias and function is conv2d_grad_weight_oihw
        with new_memory_is_nan():
            if has_bias:
                actual, grad_b = conv2d_grad_weight_and_bias(g, x, geometry)
            else:
                actual = function(*args, geometry)
        if has_bias:
            assert grad_b.dtype is dtype
            assert_near(grad_b, g.double().sum((0, 2, 3)), bound)
        launched.append(list(launches))
        assert actual.dtype is dtype
        assert actual.is_contiguous(memory_format=memory_format)
        errors.append(assert_near(actual, formula(function, *args, geometry), bound))
    assert tuple(launched) == layer.launches or dtype is not torch.float32
    return errors
