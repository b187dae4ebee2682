"""Max-pooling's kernels for CUDA, alone and with ReLU, equal their formulas."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

import manualgrad as mg
from manualgrad import kernels
from manualgrad.cuda import max_pool2d as host
from manualgrad.ops.conv_relu_pool_geometry import make_conv_relu_pool_geometry
from manualgrad.ops.max_pool2d import max_pool2d_backward, max_pool2d_forward
from manualgrad.ops.max_pool2d_geometry import make_max_pool2d_geometry
from manualgrad.ops.relu_pool import relu_pool_backward, relu_pool_forward

NAN, INF = float("nan"), float("inf")
# kernel_size, stride, padding, dilation, ceil_mode
WINDOWS = [
    (2, None, 0, 1, False),
    (3, 2, 1, 1, False),
    ((3, 2), (1, 2), (1, 0), (2, 1), True),
    (1, 1, 0, 1, False),
    (2, 3, 1, 3, True),
    (7, 2, 3, 1, False),  # too many places to unroll
]
SPECIAL = torch.tensor([0.0, -0.0, NAN, INF, -INF, -1.0, 1.0, 2.0])


def images(device: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Images (N, H, W, C) with ties, infinities and NaN."""
    return SPECIAL[torch.randint(len(SPECIAL), shape)].to(device, dtype)


@contextmanager
def without_kernels() -> Iterator[None]:
    """Let formulas compute everything inside the block."""
    kernels.choose("off")
    try:
        yield
    finally:
        kernels.choose("auto")


def assert_equal(actual, expected) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


CASES = [(windows, channels_last) for windows in WINDOWS for channels_last in (True, False)][:-1]


@pytest.mark.parametrize(("windows", "channels_last"), CASES, ids=str)
def test_max_pool2d_equals_the_formula(kernel_device, launches, windows, channels_last) -> None:
    n, height, width, c = 2, 7, 8, 3
    geometry = make_max_pool2d_geometry((n, c, height, width), *windows, channels_last)
    x = images(kernel_device, (n, height, width, c))
    out, pool_index = max_pool2d_forward(x, geometry)
    expected, expected_index = max_pool2d_forward.__wrapped__(x, geometry)
    assert_equal(out, expected)
    assert_equal(pool_index, expected_index)
    memory = out if channels_last else out.permute(0, 3, 1, 2)
    assert memory.is_contiguous() and pool_index.stride() == out.stride()
    g = torch.randn(out.permute(0, 3, 1, 2).shape, device=kernel_device)
    grad = max_pool2d_backward(g, pool_index.permute(0, 3, 1, 2), geometry)
    expected = max_pool2d_backward.__wrapped__(g, pool_index.permute(0, 3, 1, 2), geometry)
    assert_equal(grad, expected)
    assert grad.stride() == expected.stride()
    assert launches == ["max_pool2d_forward", "max_pool2d_backward"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_of_many_windows_are_added_in_float32(kernel_device, launches, dtype) -> None:
    geometry = make_max_pool2d_geometry((1, 2, 9, 9), 5, 1, 2, 1, False)
    x = torch.zeros(1, 9, 9, 2, device=kernel_device, dtype=dtype)
    x[0, 4, 4] = 1  # the maximum of 25 windows
    pool_index = max_pool2d_forward(x, geometry)[1].permute(0, 3, 1, 2)
    g = torch.rand(1, 2, 9, 9).add(1).mul(64).round().div(64).to(kernel_device, dtype)
    exact = max_pool2d_backward.__wrapped__(g.double(), pool_index, geometry).to(dtype)
    truncates = kernel_device == "cpu" and dtype == torch.bfloat16  # so the interpreter rounds, where a GPU is exact
    ulp = 2.0**-7 if truncates else 0.0
    torch.testing.assert_close(max_pool2d_backward(g, pool_index, geometry), exact, rtol=ulp, atol=0)
    assert_equal(max_pool2d_backward.__wrapped__(g, pool_index, geometry), exact)
    assert launches == ["max_pool2d_forward", "max_pool2d_backward"]


def test_other_memory_orders_and_sizes(kernel_device, launches, monkeypatch) -> None:
    """Expanded and permuted tensors, offsets of 64 bits, an empty batch, one pixel, indices of 32 bits."""
    geometry = make_max_pool2d_geometry((2, 3, 6, 5), 3, 1, 1, 1, False)
    x = images(kernel_device, (2, 6, 5, 1)).expand(2, 6, 5, 3)
    g = torch.randn(2, 1, 1, 5, device=kernel_device).expand(2, 3, 6, 5)
    for limit in (host.needs_64_bits(x), True):
        monkeypatch.setattr(host, "needs_64_bits", lambda *tensors, limit=limit: limit)
        out, pool_index = max_pool2d_forward(x, geometry)
        expected, expected_index = max_pool2d_forward.__wrapped__(x, geometry)
        assert_equal(out, expected)
        assert_equal(pool_index, expected_index)
        pool_index = pool_index.permute(0, 3, 1, 2).contiguous()
        assert_equal(
            max_pool2d_backward(g, pool_index, geometry), max_pool2d_backward.__wrapped__(g, pool_index, geometry)
        )
    assert len(launches) == 4
    assert max_pool2d_forward(x[:0], geometry)[0].shape == (0, 6, 5, 3)
    assert max_pool2d_backward(g[:0], pool_index[:0], geometry).shape == (0, 3, 6, 5)
    assert len(launches) == 4, "nothing to launch"
    x, big = images(kernel_device, (1, 1, 257, 1)), make_max_pool2d_geometry((1, 1, 1, 257), (1, 257), 1, 0, 1, False)
    out, pool_index = max_pool2d_forward(x, big)
    assert pool_index.dtype == torch.int32
    assert_equal((out, pool_index), max_pool2d_forward.__wrapped__(x, big))


@pytest.mark.parametrize("subgradient", [0.0, 0.5])
def test_relu_and_pool_equal_the_formula(kernel_device, launches, subgradient) -> None:
    z = images(kernel_device, (2, 7, 9, 3))
    x, w = torch.empty(2, 1, 7, 9), torch.empty(3, 1, 1, 1)
    geometry = make_conv_relu_pool_geometry(x, w, None, 1, 0, True, subgradient)
    out, pool_index = relu_pool_forward(z, geometry)
    assert launches == ["max_pool2d_forward"]
    with without_kernels():
        expected, expected_index = relu_pool_forward(z, geometry)
    assert_equal(out, expected)
    assert_equal(pool_index, expected_index)
    assert {254, 255} <= set(pool_index.flatten().tolist())
    g = torch.randn(2, 3, 3, 4, device=kernel_device)
    grad = relu_pool_backward(g, pool_index.permute(0, 3, 1, 2), geometry)
    expected = relu_pool_backward.__wrapped__(g, pool_index.permute(0, 3, 1, 2), geometry)
    assert_equal(grad, expected)
    assert grad.stride() == expected.stride()
    assert launches == ["max_pool2d_forward", "max_pool2d_backward"]


def test_the_layer_trains_by_kernels(kernel_device, launches) -> None:
    x = torch.randn(2, 3, 6, 6, device=kernel_device, requires_grad=True)
    out, index = mg.max_pool2d(x, 3, 2, 1, return_indices=True)
    out.sum().backward()
    reference = x.detach().clone().requires_grad_()
    expected, expected_index = torch.nn.functional.max_pool2d(reference, 3, 2, 1, return_indices=True)
    expected.sum().backward()
    assert_equal((out, index, x.grad), (expected, expected_index, reference.grad))
    assert launches == ["max_pool2d_forward", "max_pool2d_backward"]
    assert mg.max_pool2d(x.detach().double(), 2).dtype == torch.float64 and len(launches) == 2, "by the formula"
