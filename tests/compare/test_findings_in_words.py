"""Promise: a mistake of one of these kinds is told in words that name it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import Function

from compare import Case, compare
from compare.gradients.diagnosis import jacobian
from compare.gradients.diagnosis.option_words import changed_option
from tests.compare.gallery.unseen.operation import Formulas
from tests.compare.gallery.unseen.score import wrong_functions


def shrunk(z: Tensor) -> Tensor:
    size = z.abs()
    return (size - size.detach().mean()) * z / size


def scaled_mean(x: Tensor) -> Tensor:
    return (x - x.mean(1, keepdim=True)) / x.var(1, correction=0, keepdim=True).sqrt()


def scaled_mean_backward(g: Tensor, x: Tensor) -> Tensor:
    """The two sums are not divided by the number of columns."""
    y, deviation = scaled_mean(x), x.var(1, correction=0, keepdim=True).sqrt()
    return (g - g.sum(1, keepdim=True) - y * (g * y).sum(1, keepdim=True)) / deviation


def neighbours(a: Tensor) -> Tensor:
    return torch.stack([a[t].sin() * a[t + 1] for t in range(4)])


def neighbours_backward(g: Tensor, a: Tensor) -> Tensor:
    """The derivative of the sine is multiplied by the same row instead of the next one."""
    grad = torch.zeros_like(a)
    for t in range(4):
        grad[t] += g[t] * a[t].cos() * a[t]
        grad[t + 1] += g[t] * a[t].sin()
    return grad


INSTEAD = (
    "`a[t]` is used instead of `a[t + 1]`" if sys.version_info >= (3, 11) else "is used instead of another one there"
)
CASES: list[tuple[Any, ...]] = [
    (shrunk, lambda: {"z": torch.randn(4, 3, dtype=torch.complex64)},
     lambda g, z: g * (1 - z.abs().mean() / z.abs()), "missing term", "derivative through abs in line"),
    (scaled_mean, lambda: {"x": torch.randn(4, 7)}, scaled_mean_backward, "factor of one term", "are both 7 times"),
    (neighbours, lambda: {"a": torch.randn(5, 3)}, neighbours_backward, "another operand", INSTEAD),
]  # fmt: skip


@pytest.mark.parametrize(("native", "inputs", "backward", "kind", "words"), CASES, ids=[c[0].__name__ for c in CASES])
def test_a_mistake_is_told_in_words(
    native: Callable[..., Tensor], inputs: Callable[[], dict[str, Tensor]], backward: Callable[..., Any], kind: str,
    words: str,
):  # fmt: skip
    options = {"whole_numbers": False}
    (finding,) = compare(Formulas("case", native, inputs, backward, (), options).case("case", backward)).findings
    assert (finding.kind, words in finding.statement) == (kind, True), finding


@pytest.mark.parametrize(
    ("option", "value", "instead", "kind", "words"),
    [
        ("adjoint", True, False, "not transposed", "the matrix is not transposed in solve (adjoint is False"),
        ("transpose", False, True, "transposed", "the matrix is transposed in solve, and should not be"),
        ("upper", True, False, "another operand", "the lower triangle of the matrix is used instead of the upper"),
        (
            "left",
            False,
            True,
            "another operand",
            "the solution of A X = B is used instead of the solution of X A = B",
        ),
        ("approximate", "tanh", "none", "another operand", "'none' is used instead of 'tanh' in solve"),
        ("", 2, 1, "another operand", "1 is used instead of 2 in solve"),
    ],
)
def test_options_have_words(option: str, value: Any, instead: Any, kind: str, words: str):
    assert changed_option(option, value, instead, "solve")[0] == kind
    assert words in changed_option(option, value, instead, "solve")[1]


class TwoOutputs(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.set_materialize_grads(False)
        return 2 * x, 3 * x

    @staticmethod
    def backward(ctx, g, h):
        return 2 * g + 3 * h


def test_an_output_that_nothing_uses_has_none_as_its_gradient():
    case = Case("two", TwoOutputs.apply, lambda x: (2 * x, 3 * x), lambda: {"x": torch.randn(3)})
    (finding,) = compare(case).findings
    assert finding.kind == "raises" and "an output that nothing uses is None" in finding.statement, finding


def test_what_was_not_asked_is_told(monkeypatch: pytest.MonkeyPatch):
    """A gradient without a pattern, by an output of more elements than are asked for."""
    monkeypatch.setattr(jacobian, "MAX_ROWS", 16)
    noise = torch.rand(20, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    case = Formulas(
        "noise", lambda x: x.sin(), lambda: {"x": torch.randn(20)},
        lambda g, x: g * x.cos() + noise.to(g.dtype) @ g, (),
    )  # fmt: skip
    (finding,) = compare(case.case("noise", case.backward)).findings
    assert "asked for 16 of 20 elements of the output" in finding.evidence, finding


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("retention, decay in the other direction", "a triangular matrix or mask (tril, triu) is not transposed"),
        ("product of quaternions, order of the factors", "a product that does not commute are in the other order"),
        ("Cayley transform, inverse not transposed", "the matrix is not transposed in linalg_lu_solve (adjoint is"),
        ("exponential of a symmetric matrix, not symmetric", "is not symmetric, and should be"),
        ("batch norm of images, divided by the number of images", "are both 10 times as large"),
        ("angles around a mean, scaled Bessel function", "i1e is used instead of i1"),
        ("products of shifted rows, not shifted in backward", "a shift or place that depends on the row is ignored"),
    ],
)
def test_a_mistake_of_the_tenth_set_is_told_in_words(name: str, words: str):
    wrong = next(wrong for wrong in wrong_functions("tenth_set") if wrong.case.name == name)
    (finding,) = compare(wrong.case).findings
    assert words in finding.statement, finding
