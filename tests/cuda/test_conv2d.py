"""Promise: convolution's kernels for CUDA equal their formulas in each precision, on each of their branches."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from manualgrad.cuda import conv2d_operands, conv2d_tiles
from manualgrad.ops.conv2d import conv2d_forward_nchw, conv2d_grad_input_nchw, conv2d_grad_weight_oihw
from tests.cuda.conv2d_layers import (
    BATCH_LAST,
    COPIES,
    DIRECT,
    GEMM,
    LAYERS,
    PACK,
    PACK_IMAGES,
    SUM,
    Layer,
    assert_near,
    check,
    formula,
    operands,
    tf32,
)


@pytest.mark.parametrize("name", LAYERS)
def test_float32_equals_the_formula(kernel_device, launches, name) -> None:
    with tf32(False):
        check(LAYERS[name], kernel_device, launches, torch.float32, 6e-7)


@pytest.mark.parametrize(
    "name",
    [
        "few channels, taps and channels on one axis", "groups, two blocks of the batch",
        pytest.param("tails of tiles", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_tf32_rounds_operands_to_nearest(kernel_device, launches, name) -> None:
    with tf32(True):
        errors = check(LAYERS[name], kernel_device, launches, torch.float32, 5e-4)  # 2^-11 for one product
    assert min(errors) > 1e-5, "the products were not in TF32"


@pytest.mark.parametrize(
    "name",
    [
        "contiguous, phases, correlation", "depthwise",
        pytest.param("few channels, taps and channels on one axis", marks=pytest.mark.slow),
        pytest.param("1x1, more stride than kernel", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_float16_accumulates_in_float32(kernel_device, launches, name) -> None:
    check(LAYERS[name], kernel_device, launches, torch.float16, 4e-4)  # results are rounded to 2^-11 at most


@pytest.fixture
def bfloat16_products(kernel_device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the interpreter multiply bfloat16 numbers: it multiplies their bits as whole numbers."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    original = InterpreterBuilder.create_dot

    def create_dot(self: Any, *operands: Any) -> Any:
        a, b = (
            TensorHandle((x.data.astype("uint32") << 16).view("float32"), tl.float32)
            if x.data.dtype == "uint16"
            else x
            for x in operands[:2]
        )
        return original(self, a, b, *operands[2:])

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)


def test_bfloat16_of_whole_numbers_is_exact(kernel_device, bfloat16_products, launches) -> None:
    """Sums below 256 need no rounding, which the interpreter does differently."""
    x, w, b, geometry = operands(LAYERS["few channels, taps and channels on one axis"], kernel_device)
    x, w, b = (t.sign().bfloat16() for t in (x, w, b))
    g = torch.randn(2, 6, 4, 5).to(kernel_device).sign().bfloat16()
    for function, args in (
        (conv2d_forward_nchw, (x, w, b)), (conv2d_grad_input_nchw, (g, w)), (conv2d_grad_weight_oihw, (g, x))
    ):  # fmt: skip
        assert torch.equal(function(*args, geometry).double(), formula(function, *args, geometry))
    assert launches == [PACK, GEMM, PACK, GEMM, PACK_IMAGES, DIRECT]


@pytest.mark.parametrize(("channels", "channels_last"), [(17, True), (72, False)])
def test_long_sums_in_parts(kernel_device, launches, monkeypatch, channels, channels_last) -> None:
    monkeypatch.setitem(conv2d_tiles._FEW, "3xtf32", (1.6, 2))  # sums of two blocks or more are long
    layer = Layer((1, channels, 2, 3), (33, channels, 2, 2), ([], [], []), channels_last=channels_last)
    x, w, b, geometry = operands(layer, kernel_device)
    with tf32(False):
        assert_near(conv2d_forward_nchw(x, w, b, geometry), formula(conv2d_forward_nchw, x, w, b, geometry), 6e-7)
    assert launches == [PACK, GEMM, SUM]


def test_half_types_copy_the_batch_last_for_few_channels_and_large_kernels(kernel_device, launches) -> None:
    x, _, _, geometry = operands(Layer((9, 2, 5, 6), (3, 2, 5, 5), ([], [], [])), kernel_device, torch.float16)
    g = torch.randn(9, 3, 1, 2).to(kernel_device, torch.float16)
    assert_near(conv2d_grad_weight_oihw(g, x, geometry), formula(conv2d_grad_weight_oihw, g, x, geometry), 4e-4)
    assert launches == [COPIES, BATCH_LAST]


def test_float16_weight_in_channels_last_order_is_read_in_place(kernel_device, launches) -> None:
    x, w, b, geometry = operands(LAYERS["contiguous, phases, correlation"], kernel_device, torch.float16)
    x, w = (t.contiguous(memory_format=torch.channels_last) for t in (x, w))
    assert_near(conv2d_forward_nchw(x, w, b, geometry), formula(conv2d_forward_nchw, x, w, b, geometry), 4e-4)
    assert launches == [GEMM]


@pytest.mark.parametrize("name", ["contiguous, phases, correlation", "groups, two blocks of the batch", "depthwise"])
def test_64_bit_offsets(kernel_device, launches, monkeypatch, name) -> None:
    monkeypatch.setattr(conv2d_operands, "INT32_NUMEL", 1)
    with tf32(False):
        check(LAYERS[name], kernel_device, launches, torch.float32, 6e-7)
