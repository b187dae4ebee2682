"""ReLU's kernels for CUDA equal their formulas."""

from __future__ import annotations

import pytest
import torch

from manualgrad.ops.relu import relu_backward

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("subgradient", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_relu_backward_equals_the_formula(kernel_device, launches, dtype, subgradient) -> None:
    tiny = 1e-30 if dtype == torch.bfloat16 and kernel_device == "cpu" else 1e-40  # the interpreter's bfloat16 ...
    special = torch.tensor([0.0, -0.0, NAN, INF, -INF, 1.0, -1.0, tiny])  # ... has no subnormal numbers
    z = torch.cartesian_prod(special, special)[:, 0].to(kernel_device, dtype)
    g = torch.cartesian_prod(special, special)[:, 1].to(kernel_device, dtype)
    expected = relu_backward.__wrapped__(g, z, subgradient)
    actual = relu_backward(g, z, subgradient)
    assert launches == ["relu_backward"]
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


def test_relu_backward_of_other_memory_orders(kernel_device, launches) -> None:
    z = torch.randn(2, 3, 4, 5, device=kernel_device).to(memory_format=torch.channels_last)
    g = torch.randn(2, 1, 4, 5, device=kernel_device).expand(2, 3, 4, 5)
    actual = relu_backward(g, z, 0.5)
    assert launches == ["relu_backward"]
    assert actual.stride() == z.stride()
    assert torch.equal(actual, relu_backward.__wrapped__(g, z, 0.5))
    assert relu_backward(g[:0], z[:0], 0.5).shape == (0, 3, 4, 5)
