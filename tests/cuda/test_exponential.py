"""Promise: powers and logarithms of CUDA's kernels are a few units in the last place from exact ones."""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl

from manualgrad.cuda.kernels.exponential import exp_nonpositive, log_normal

NUMEL = 8192
# In the interpreter exp2 is NumPy's: 1.24 ulp in all. A GPU's is off by 2^-22 of the result, which is up to 4 ulp.
MAX_ULPS = 5.0 if torch.cuda.is_available() else 3.0


@triton.jit
def powers_and_logarithms(power, logarithm, x, y, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(power + i, exp_nonpositive(tl.load(x + i)))
    tl.store(logarithm + i, log_normal(tl.load(y + i)))


def ulps(actual: torch.Tensor, exact: torch.Tensor) -> float:
    """The largest error in units of the last place of ``exact``, which is float64."""
    unit = np.spacing(np.abs(exact.numpy()).astype(np.float32)).astype(np.float64)
    return float((np.abs(actual.double().numpy() - exact.numpy()) / unit).max())


def test_powers_and_logarithms(kernel_device) -> None:
    """Powers from 1 down to the smallest number above 0; logarithms near 1, where they are small, and of any size."""
    x = torch.linspace(-103, 0, NUMEL)
    y = torch.cat([torch.linspace(0.6, 1.5, NUMEL // 2), torch.logspace(-37, 38, NUMEL // 2)])
    power, logarithm = torch.empty(2, NUMEL, device=kernel_device)
    powers_and_logarithms[(1,)](power, logarithm, x.to(kernel_device), y.to(kernel_device), NUMEL)
    assert ulps(power.cpu(), x.double().exp()) < MAX_ULPS
    assert ulps(logarithm.cpu(), y.double().log()) < MAX_ULPS


def test_numbers_without_a_power_or_logarithm_of_their_own(kernel_device) -> None:
    nan, inf = float("nan"), float("inf")
    x, y = torch.tensor([[-inf, -1e30, nan, -0.0], [inf, nan, 1.0, 1.0]], device=kernel_device)
    actual = torch.empty(2, 4, device=kernel_device)
    powers_and_logarithms[(1,)](actual[0], actual[1], x, y, 4)
    expected = torch.tensor([[0.0, 0.0, nan, 1.0], [inf, nan, 0.0, 0.0]], device=kernel_device)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
