"""Promise: compare tells changes of two places, of stored parts and of equations, too."""

from __future__ import annotations

import pytest
import torch

from compare import compare
from compare.gradients.source_changes import source_findings
from tests.compare.source_changes import several_mistakes as mistakes
from tests.compare.source_changes.test_corrections import DTYPES, case_of, corrections_of, matrix, texts


def centred(x):
    x = x - x.mean(1, keepdim=True)
    return x / x.norm(dim=1, keepdim=True)


def bilinear(x, w, z):
    return ((x @ w) * z).sum(1)


# Function, native, inputs, what is told of each changed place.
MISTAKES = [
    (mistakes.Differences, lambda x: x[:, 1:] - x[:, :-1], (matrix,), [("gx[:, 1:] -= g", "gx[:, :-1] -= g")]),
    (mistakes.Unpacked, lambda x, y: x * y.exp(), (matrix, matrix), [("y, x = ctx", "x, y = ctx")]),
    (mistakes.Bilinear, bilinear, (matrix, lambda: matrix(4, 4), matrix), [("'b,bi,bj->ji'", "'b,bi,bj->ij'")]),
    (
        mistakes.Centred,
        centred,
        (matrix,),
        [("(g * y).sum(0, keepdim", "(g * y).sum(1, keepdim"), ("gx.sum(0", "gx.sum(1")],
    ),
    (mistakes.SumOfTwo, lambda x: x.sin() + x**3, (matrix,), [("x.sin()", "x.cos()"), ("x ** 2", "3")]),
    (mistakes.ProductOfTwo, lambda x, y: y.exp() / x, (matrix, matrix), [("g * x", "")]),
]
NAMES = [function.__name__ for function, *_ in MISTAKES]


@pytest.mark.parametrize(("function", "native", "inputs", "told"), MISTAKES, ids=NAMES)
def test_every_changed_place_is_told(function, native, inputs, told):
    corrections = corrections_of(case_of(function, native, inputs), max_calls=600_000)
    assert corrections and all(c.makes_all_right for c in corrections)
    first = [(change.old, change.new) for change in corrections[0].changes]
    for old, new in told:
        assert any(old in before and new in after for before, after in texts(corrections)), first


@pytest.fixture
def short_search(monkeypatch):
    for name in ("MAX_CALLS", "MAX_CALLS_IF_NAMED"):
        monkeypatch.setattr(source_findings, name, 200_000)


def test_changes_that_mend_a_part_each_are_told_with_their_parts():
    case = case_of(
        mistakes.TwoSoftmaxes, lambda x: x[0].softmax(1) - x[1].softmax(1), (lambda: torch.randn(2, 5, 4),)
    )
    (finding,) = compare(case, dtypes=DTYPES).findings
    assert finding.kind == "change of the source"
    assert "should be `both = p` for the 20 at [0, :, :]" in finding.statement, finding
    assert finding.statement.endswith("`(g * q).sum(1, keepdim=True)` for the 20 at [1, :, :]"), finding
    assert finding.evidence.startswith("with each change its elements of the gradient of x are right")


def test_a_gradient_without_a_change_does_not_hide_that_of_another():
    native = lambda x, y: (1 - x.sigmoid()) ** 2 * x.sigmoid().log() + y**2  # noqa: E731
    corrections = corrections_of(case_of(mistakes.TwoGradients, native, (matrix, matrix)))
    told = {(next(iter(c.quantities)), change.old, change.new) for c in corrections for change in c.changes}
    assert any(q == "gradient of y" and new.endswith(", 2 * g * y)") for q, _, new in told), told
    assert any(q == "gradient of x" and "p.log()" in new for q, _, new in told), told


def test_each_of_two_changes_is_told_with_the_gradient_that_it_makes_right(short_search):
    case = case_of(mistakes.SharedStep, lambda a, b: (a * b).sin() * 1.5, (matrix, matrix))
    findings = compare(case, dtypes=DTYPES).findings
    of_a, of_b = (next(f for f in findings if f.quantity == f"gradient of {name}") for name in "ab")
    assert "(a * b).cos()" in str(of_a) and "with this change the gradient of a is right" in str(of_a), findings
    assert "step * a" in str(of_b) and "with this change, too, all comparisons are right" in str(of_b), findings
    assert "step * a" not in str(of_a) and ".cos()" not in str(of_b).split("should be")[1], findings
