"""Promise: a change of native is refused early only if its part of the gradient is no multiple of the needed one."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import Function

from compare import Case
from compare.gradients.case_runner import CaseRunner
from compare.gradients.diagnosis import changed_native as changed
from compare.gradients.diagnosis.changed_native import NativeChange
from compare.gradients.diagnosis.native_oracle import NativeOracle
from compare.gradients.diagnosis.native_paths import NativePaths
from compare.gradients.diagnosis.native_recording import weights_of_sums
from compare.gradients.variants import variants

DTYPES = (torch.float64,)


def squashed(x, w):
    return (x @ w).tanh().cumsum(1).exp()


class Squashed(Function):
    """The derivative of cumsum is not reversed."""

    @staticmethod
    def forward(ctx, x, w):
        inner = (x @ w).tanh()
        out = inner.cumsum(1).exp()
        ctx.save_for_backward(x, w, inner, out)
        return out

    @staticmethod
    def backward(ctx, g):
        x, w, inner, out = ctx.saved_tensors
        through = (g * out).cumsum(1) * (1 - inner**2)
        return through @ w.mT, x.mT @ through


CHANGES = {"doubled": changed.scaled(2.0), "flipped": changed.with_gradient(lambda g: g.flip(1))}


@pytest.fixture(scope="module")
def paths():
    case = Case("squashed", Squashed.apply, squashed, lambda: (torch.randn(4, 3), torch.randn(3, 5)))
    runner = CaseRunner(case, "cpu", 0, DTYPES)
    list(runner.rows(next(iter(variants(DTYPES)))))
    mismatch = runner.mismatches[0]
    probe = NativeOracle(case, runner.native_rerunner, 0).probe(mismatch.variant)
    search = NativePaths(mismatch, probe)
    assert mismatch.quantity == "gradient of x"
    assert search.is_traced
    return search


@pytest.mark.parametrize("change", CHANGES)
def test_a_multiple_is_told_and_another_part_is_refused(paths, change):
    refused = 0
    for path in paths.paths:
        one = NativeChange(path.call.site, path.position, CHANGES[change])
        part = paths.recording.derivative(path.call, one)
        for factor in (1.0, -0.7):
            told = paths.recording.derivative(path.call, one, factor * part + 1e-11, 1e-11)
            torch.testing.assert_close(told, part, rtol=0, atol=0)
        other = part * (torch.arange(part.numel()).view(part.shape) % 3 == 0)
        refused += paths.recording.derivative(path.call, one, other, 1e-11) is None
        assert paths.recording.derivative(path.call, one, other, 10.0) is not None  # as near as the tolerance
    assert refused == len(paths.paths) - 1 == 3  # the argument that is the input itself has its part at once


def test_nothing_is_refused_where_an_operation_has_no_second_derivative():
    class OnceOnly(Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, g):
            return 2 * g

    leaf = torch.randn(3, dtype=torch.float64).requires_grad_()
    assert weights_of_sums(OnceOnly.apply(leaf), leaf) is None
    of_leaf, of_argument = weights_of_sums(2 * leaf, leaf)
    torch.testing.assert_close(of_argument, 2 * of_leaf)
