"""Promise: a dense layer by the convolution's kernel equals the formula, and is used only where it is faster."""

from __future__ import annotations

import pytest
import torch

import manualgrad as mg
from manualgrad import kernels
from manualgrad.cpu import dense, jit
from manualgrad.dispatch import by_kernel
from manualgrad.ops.dense import dense_forward

needs_kernels = pytest.mark.skipif(kernels.available().instructions is None, reason=str(kernels.available()))
pytestmark = [needs_kernels, pytest.mark.usefixtures("restore_kernels")]
formula = dense_forward.__wrapped__


@pytest.fixture(autouse=True)
def for_any_size_and_processor(monkeypatch):
    monkeypatch.setattr(dense, "MIN_EXAMPLES", 1)
    monkeypatch.setattr(dense, "MIN_FEATURES", 1)
    monkeypatch.setattr(dense, "why_not_faster", lambda: "")


def whole_numbers(*shape: int) -> torch.Tensor:
    return torch.randint(-3, 4, shape).float()


@pytest.mark.parametrize("instructions", sorted(jit.LANES))
@pytest.mark.parametrize("examples, features, channels", [(1, 1, 1), (37, 70, 19), (130, 300, 70)])
@pytest.mark.parametrize("w_is", ["transposed", "contiguous", "with gaps"])
def test_the_kernel_equals_the_formula(instructions, examples, features, channels, w_is):
    """Bit for bit, since whole numbers make every sum exact; with and without a bias."""
    kernels.choose(instructions if instructions in jit.instruction_sets() else "auto")
    x, b = whole_numbers(examples, features), whole_numbers(2 * channels)[::2]
    w = {
        "transposed": whole_numbers(channels, features).t(),
        "contiguous": whole_numbers(features, channels),
        "with gaps": whole_numbers(2 * features, 3 * channels)[::2, ::3],
    }[w_is]
    for bias in (None, b):
        result = by_kernel("dense_forward", x, w, bias)
        assert torch.equal(result, formula(x, w, bias)) and result.is_contiguous()


def test_error_is_at_most_that_of_torch_mm_and_2_ulp():
    """The kernel adds blocks of terms, as MKL does."""
    x, w = torch.randn(64, 2000), torch.randn(2000, 64)
    exact = x.double() @ w.double()
    ours, theirs = ((t.double() - exact).abs().max() for t in (by_kernel("dense_forward", x, w, None), x @ w))
    assert ours <= theirs + 2 * torch.finfo(torch.float32).eps * exact.abs().max()


def test_numbers_that_are_not_finite_give_what_the_formula_gives():
    x, w = torch.randn(20, 30), torch.randn(30, 40)
    x[1, 2], x[3, 4], w[5, 6] = torch.inf, torch.nan, -torch.inf
    torch.testing.assert_close(by_kernel("dense_forward", x, w, None), formula(x, w, None), equal_nan=True)


def test_a_layer_uses_it_forward_and_for_the_gradient_of_its_input():
    x, w, b = torch.randn(20, 30, requires_grad=True), torch.randn(40, 30, requires_grad=True), torch.randn(40)
    report = str(kernels.explain(lambda: mg.dense(x, w, b).square().sum().backward()))
    assert report.count("cpu kernel") == 2
    assert "the rows of a factor are not contiguous" in report, (
        "the gradient of the weight is a product of transposes"
    )


def test_the_formula_computes_other_products(monkeypatch):
    x, w, b = torch.randn(20, 30), torch.randn(30, 40), torch.randn(40)
    truncated = torch.randn(20, 30)
    truncated.untyped_storage().resize_(8)
    for operands in [
        (x.double(), w.double(), None), (x.bfloat16(), w.bfloat16(), None), (truncated, w, b),
        (torch.randn(30, 20).t(), w, b), (torch.randn(20, 60)[:, ::2], w, b),
    ]:  # fmt: skip
        assert by_kernel("dense_forward", *operands) is None
    for limit, value in {"MIN_EXAMPLES": 21, "MIN_FEATURES": 31, "MAX_WEIGHTS": 1199}.items():
        with monkeypatch.context() as patch:
            patch.setattr(dense, limit, value)
            assert by_kernel("dense_forward", x, w, b) is None
    assert by_kernel("dense_forward", x, w, b) is not None


@pytest.mark.parametrize(
    "instructions, processor, is_used",
    [("avx512", "znver4", True), ("avx512", "sapphirerapids", False), ("avx2", "znver3", False)],
)
def test_processors(monkeypatch, instructions, processor, is_used):
    monkeypatch.undo()
    monkeypatch.setattr("llvmlite.binding.get_host_cpu_name", lambda: processor)
    monkeypatch.setattr(dense, "instruction_sets", lambda: (instructions,))
    assert (dense.why_not_faster.__wrapped__() == "") == is_used
