"""Softmax's kernels for CUDA equal their formulas."""

from __future__ import annotations

import pytest
import torch

import manualgrad as mg
from manualgrad.cuda import rows
from manualgrad.ops.softmax import softmax_backward, softmax_forward

NAN, INF = float("nan"), float("inf")
# shape, dim: rows, rows of one class, planes of classes, more classes than a tile
CASES = [((5, 7), 1), ((3, 1), -1), ((2, 6, 3, 2), 1), ((70, 2), 0), ((3, 40), 1), ((2, 40, 3), 1)]


@pytest.fixture
def small_tiles(monkeypatch) -> None:
    monkeypatch.setattr(rows, "TILE", 64)
    monkeypatch.setattr(rows, "MAX_BLOCK", 32)
    monkeypatch.setattr(rows, "MAX_STRIDED_BLOCK", 16)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(("shape", "dim"), CASES, ids=str)
def test_softmax_equals_the_formula_in_float64(kernel_device, launches, shape, dim) -> None:
    z, g = ((100 * torch.randn(2, *shape)).round() / 8).to(kernel_device)  # differences are exact in float32
    s = softmax_forward(z, dim)
    expected = softmax_forward.__wrapped__(z.double(), dim)
    torch.testing.assert_close(s.double(), expected, rtol=1e-6, atol=1e-45)  # 8 ulp of each probability
    grad = softmax_backward(g, s, dim)
    expected = softmax_backward.__wrapped__(g.double(), s.double(), dim)
    torch.testing.assert_close(grad.double(), expected, rtol=1e-5, atol=1e-6 * g.abs().max().item())
    assert s.is_contiguous() and grad.is_contiguous()
    assert launches == ["softmax_forward", "softmax_backward"]


@pytest.mark.usefixtures("small_tiles")
def test_softmax_of_infinite_numbers_and_other_orders(kernel_device, launches, monkeypatch) -> None:
    row = torch.arange(40.0)
    special = torch.stack([row.clone() for _ in range(5)])
    special[0, 3], special[1, 35], special[2, 0:33], special[3, :] = INF, NAN, -INF, -INF
    z = special.to(kernel_device)
    torch.testing.assert_close(softmax_forward(z, 1), softmax_forward.__wrapped__(z, 1), equal_nan=True)
    torch.testing.assert_close(softmax_forward(z.T, 0), softmax_forward.__wrapped__(z.T, 0), equal_nan=True)
    monkeypatch.setattr(rows, "needs_64_bits", lambda *tensors: True)
    g = torch.randn(1, 40, device=kernel_device).expand(5, 40)
    s = softmax_forward(z, 1)
    torch.testing.assert_close(
        softmax_backward(g, s, 1), softmax_backward.__wrapped__(g, s, 1), equal_nan=True, rtol=1e-5, atol=1e-6
    )
    assert launches == ["softmax_forward"] * 3 + ["softmax_backward"]


def test_the_layer_differentiates_by_kernels(kernel_device, launches) -> None:
    z = torch.randn(4, 3, dtype=torch.bfloat16, device=kernel_device, requires_grad=True)
    mg.softmax(z).square().sum().backward()
    assert launches == ["softmax_forward", "softmax_backward"] and z.grad.dtype == torch.bfloat16
    assert mg.softmax(z[:0]).shape == (0, 3)
    assert mg.softmax(torch.tensor(2.0, device=kernel_device)).item() == 1
