"""Convolution, ReLU and pooling on CUDA: one kernel for one input channel, otherwise layer by layer."""

from __future__ import annotations

import pytest
import torch

from manualgrad import kernels
from manualgrad.cuda import conv_relu_pool as host
from manualgrad.ops.conv_relu_pool import conv2d_relu_max_pool2d, conv_relu_pool_forward
from manualgrad.ops.conv_relu_pool_geometry import make_conv_relu_pool_geometry

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(("flip", "bias", "wide"), [(True, True, False), (False, False, True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_channel_equals_the_formula(kernel_device, launches, monkeypatch, dtype, flip, bias, wide) -> None:
    """Whole numbers, so that all sums are exact: ties, exact zeros, inactive windows; and numbers not finite."""
    monkeypatch.setattr(host, "BM", 32)
    monkeypatch.setattr(host, "needs_64_bits", lambda *tensors: wide)
    x = torch.randint(-1, 2, (3, 1, 9, 8)).to(kernel_device, dtype)
    x[1, 0, 0, 0], x[2, 0, 3, 3], x[2, 0, 7, 7] = INF, NAN, -INF
    w = torch.randint(-1, 2, (18, 1, 3, 2)).to(kernel_device, dtype)
    b = torch.randint(-1, 1, (18,)).to(kernel_device, dtype) if bias else None
    geometry = make_conv_relu_pool_geometry(x, w, b, 1, 0, flip, 0.5)
    actual = conv_relu_pool_forward(x, w, b, geometry)
    assert launches == ["conv_relu_pool_forward"]
    kernels.choose("off")
    try:
        expected = conv_relu_pool_forward(x, w, b, geometry)
    finally:
        kernels.choose("auto")
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
    assert [t.stride() for t in actual] == [t.stride() for t in expected]
    assert {0, 1, 2, 3, 254, 255} == set(actual[1].flatten().tolist())
    assert conv_relu_pool_forward(x[:0], w, b, geometry)[0].shape == (0, 18, 3, 3)


def test_layers_run_one_by_one_where_one_kernel_does_not_pay(kernel_device, launches) -> None:
    x = torch.randn(2, 2, 6, 6, device=kernel_device, requires_grad=True)
    w = torch.randn(4, 2, 3, 3, device=kernel_device, requires_grad=True)
    explanation = kernels.explain(lambda: conv2d_relu_max_pool2d(x, w).sum().backward())
    reasons = {record.formula: record.reason for record in explanation.records}
    assert reasons["conv_relu_pool_forward"] == "layer by layer it is faster for more than one input channel"
    assert reasons["relu_pool_forward"] == reasons["relu_pool_backward"] == ""
    assert launches.count("max_pool2d_forward") == launches.count("max_pool2d_backward") == 1
    reference = x.detach().clone().requires_grad_()
    z = torch.nn.functional.conv2d(reference, w.detach().flip(2, 3))
    torch.nn.functional.max_pool2d(torch.relu(z), 2).sum().backward()
    torch.testing.assert_close(x.grad, reference.grad, rtol=1e-5, atol=1e-5)
