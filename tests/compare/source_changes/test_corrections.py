"""Promise: where one edit of the source makes a wrong Function right, compare tells the line and the edit."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import Function

from compare import Case, compare
from compare.gradients.case_runner import CaseRunner
from compare.gradients.diagnosis.findings import Finding
from compare.gradients.measure import Row
from compare.gradients.source_changes.correction import Correction
from compare.gradients.source_changes.search import search
from compare.gradients.source_changes.source_findings import add_corrections
from compare.gradients.variants import variants
from tests.compare.source_changes import mistakes, reading_mistakes, writing_mistakes

DTYPES = (torch.float64,)
MAX_CALLS = 300_000  # compare takes 250,000 or 500,000
INDEX = torch.tensor([2, 0, 3, 1])


def matrix(rows=5, columns=4):
    return torch.randn(rows, columns)


def images():
    return torch.randn(2, 3, 2, 4)


def largest_in_boxes(x):
    return torch.stack(
        [x[top:low, left:right].flatten().max(0).values for top, low, left, right in writing_mistakes.BOXES]
    )


def run(case: Case) -> tuple[CaseRunner, list[Row]]:
    """Compare a case in float64 alone."""
    runner = CaseRunner(case, "cpu", 0, DTYPES)
    rows = [row for variant in variants(DTYPES) if runner.has_layouts_of(variant) for row in runner.rows(variant)]
    assert runner.mismatches, "the function is right"
    return runner, rows


def corrections_of(case: Case, max_calls: int = MAX_CALLS) -> list[Correction]:
    """The corrections of a case that a search of ``max_calls`` finds."""
    runner, rows = run(case)
    variants_compared = list(dict.fromkeys(row.variant for row in rows))
    return search(runner, runner.mismatches, variants_compared, max_calls).corrections


def texts(corrections: list[Correction]) -> set[tuple[str, str]]:
    """Before and after of every change."""
    return {(change.old, change.new) for each in corrections for change in each.changes}


# Function, native, inputs, what is result and what replaces it.
MISTAKES = [
    (mistakes.Swish, torch.nn.functional.silu, (matrix,), "g * (s + s * (1 - s))", "g * (s + s * (1 - s) * x)"),
    (mistakes.Tanh, torch.tanh, (matrix,), "return g * (1 - x ** 2)", "return g * (1 - y ** 2)"),
    (mistakes.SavesTheArgument, torch.exp, (matrix,), "ctx.save_for_backward(x)", "ctx.save_for_backward(y)"),
    (mistakes.Difference, torch.sub, (matrix, matrix), "(g.clone(), g.clone())", "(g.clone(), -g.clone())"),
    (mistakes.Transposed, torch.matmul, (matrix, lambda: matrix(4, 4)), "(g @ w, x.t()", "(g @ w.mT, x.t()"),
    (mistakes.Clamp, lambda x: x.clamp(min=0.25), (matrix,), "return g * (x < 0.25)", "return g * (x > 0.25)"),
    (mistakes.Exchanged, torch.mul, (matrix, matrix), "return (g * a, g * b)", "return (g * b, g * a)"),
    (mistakes.RunningSum, lambda x: x.cumsum(0), (matrix,), "carry = g[t]", "carry += g[t]"),
    (mistakes.ShortLoop, lambda x: 2 * x, (matrix,), "range(len(g) - 1)", "range(len(g))"),
    (mistakes.Power, lambda x: x**3, (matrix,), "3 * g * x ** 3", "3 * g * x ** 2"),
    (writing_mistakes.Powers, lambda x: x**3, (matrix,), "powers.append(power)", "powers.append(power.clone())"),
    (writing_mistakes.ShiftedSine, lambda x: (x + 0.5).sin(), (matrix,), "save_for_backward(y)", "y.clone()"),
    (writing_mistakes.TakenColumns, lambda x: x[:, writing_mistakes.LABELS] ** 2, (matrix,), "gx[:, LABELS] -=",
     "gx.index_add_(1, LABELS, -(-2 * g * x[:, LABELS]))"),
    (writing_mistakes.LargestInBoxes, largest_in_boxes, (matrix,), "place // width", "place // (right - left)"),
    (reading_mistakes.CentredImages, lambda x: x - x.mean((2, 3), keepdim=True), (images,), "ctx.dims", "(2, 3)"),
    (reading_mistakes.PairsOfRows, lambda x: x[reading_mistakes.FIRST] * x[reading_mistakes.SECOND], (matrix,),
     "g * x[SECOND]", "g * x[FIRST]"),
    (reading_mistakes.WrittenOver, lambda x: torch.cat([3 * x.sum(1, keepdim=True), 2 * x[:, :-1]], 1), (matrix,),
     "g[:, :-1] = 2 * g[:, 1:]", "before = 3 * g[:, :1]; g[:, :-1] = 2 * g[:, 1:]"),
    (mistakes.Scaled, lambda x: (mistakes.BETA * x).sin(), (matrix,), "(BETA * x).cos()", "(BETA * x).cos() * BETA"),
    (mistakes.Root, lambda x, y: x * y / 2, (matrix, matrix), ", g * x)", "0.5 * (g * x))"),
    (mistakes.Permuted, lambda x, index: x[:, index], (matrix, lambda: INDEX), "[:, index]", "[:, index.argsort()]"),
    (mistakes.TurnsOn, lambda x: x.roll(1, 1), (matrix,), "return turn(g)", "return turn(g, -1)"),
    (mistakes.TurnsInOrder, lambda x: x.roll(2, 1).flip(0), (matrix,), "turn(g, -2)", "turn(g, -2, reverse=True)"),
    (mistakes.InAnInnerFunction, lambda x: x * x.tanh(), (matrix,), "y + (1 - y * y)", "y + (1 - y * y) * x"),
    (mistakes.Gaussian, lambda x: torch.exp(-x * x), (matrix,), "-x * torch.exp", "2 * (-x * torch.exp"),
]  # fmt: skip


def case_of(function: type[Function], native, inputs) -> Case:
    return Case(function.__name__, function.apply, native, lambda: tuple(make() for make in inputs))


NAMES = [function.__name__ for function, *_ in MISTAKES]


@pytest.mark.parametrize(("function", "native", "inputs", "old", "new"), MISTAKES, ids=NAMES)
def test_the_line_and_the_edit_are_told(function, native, inputs, old, new):
    corrections = corrections_of(case_of(function, native, inputs))
    assert corrections and all(c.makes_all_right for c in corrections)
    result = texts(corrections)
    assert any(old in c_old and new in c_new for c_old, c_new in result), result


def test_reports_tell_it_after_the_evidence():
    report = str(compare(case_of(mistakes.Exchanged, torch.mul, (matrix, matrix)), dtypes=DTYPES))
    line = mistakes.Exchanged.backward.__code__.co_firstlineno + 3
    words = f"in line {line} of mistakes.py, `return (g * a, g * b)` should be `return (g * b, g * a)`"
    assert f"\n    {words}: with this change all comparisons are right" in report, report


def test_a_text_that_stands_twice_in_a_line_is_told_by_its_number():
    native = lambda a, b: (a - b) * mistakes.WEIGHTS_OF_THE_DIFFERENCE.to(a.dtype)  # noqa: E731
    report = str(compare(case_of(mistakes.SameTextTwice, native, (matrix, matrix)), dtypes=DTYPES))
    line = mistakes.SameTextTwice.backward.__code__.co_firstlineno + 2
    words = "the second `WEIGHTS_OF_THE_DIFFERENCE.to(g.dtype)` should be `-"
    assert f"in line {line} of mistakes.py, {words}" in report, report


def test_where_no_pattern_fits_the_edit_is_the_finding():
    runner, rows = run(case_of(mistakes.Exchanged, torch.mul, (matrix, matrix)))
    unknown = [Finding("unknown", f"gradient of input {n}", "12 of 12 elements are wrong") for n in (0, 1)]
    (finding,), note = add_corrections(unknown, runner, rows, {})
    assert not note
    assert finding.kind == "change of the source"
    assert finding.quantity == "gradient of input 0 and gradient of input 1"
    assert finding.statement.endswith("`return (g * a, g * b)` should be `return (g * b, g * a)`")
    assert finding.evidence == "with this change all comparisons are right; 12 of 12 elements are wrong"


def test_two_mistakes_of_one_gradient_have_no_correction():
    assert corrections_of(case_of(mistakes.TwoMistakes, lambda a, b: a.sin() * b, (matrix, matrix))) == []


def test_a_number_that_ctx_keeps_is_put_in():
    ours = lambda x: mistakes.ForgetsWhatCtxKeeps.apply(x, 2.5)  # noqa: E731
    case = Case("softplus", ours, lambda x: torch.nn.functional.softplus(x, 2.5), lambda: (matrix(),))
    result = texts(corrections_of(case))
    assert ("g * torch.sigmoid(x)", "g * torch.sigmoid(x * ctx.beta)") in result, result


def test_what_forward_has_a_name_for_is_looked_up_in_ctx():
    case = Case(
        "scaled", lambda x: mistakes.KeepsANumber.apply(x, 0.3), lambda x: x.relu() / 0.91, lambda: (matrix(),)
    )
    result = texts(corrections_of(case, max_calls=500_000))
    assert any("(1 - ctx.p * ctx.p)" in new for _, new in result), result


def test_a_forgotten_bound_is_put_in():
    case = case_of(mistakes.Masked, lambda x: x.clamp(-0.5, 0.75), (matrix,))
    result = texts(corrections_of(case, max_calls=500_000))
    assert any("x >= -0.5" in new or "x > -0.5" in new for _, new in result), result


def test_of_two_wrong_gradients_each_has_its_own_correction():
    corrections = corrections_of(case_of(mistakes.OneInEach, lambda a, b: a.sin() * b, (matrix, matrix)))
    assert {c.quantities for c in corrections} == {frozenset({"gradient of a"}), frozenset({"gradient of b"})}
    assert not any(c.makes_all_right for c in corrections)


def test_a_number_that_is_also_a_size_is_told_as_both():
    case = case_of(mistakes.Root, lambda x, y: x * y / 2, (matrix, matrix))
    (finding,) = compare(case, dtypes=DTYPES).findings
    size, number = finding.correction.split(" or ")
    assert "g * x / " in size and ".shape[" in size and "0.5 * (g * x))`" in number, finding.correction


def test_nothing_is_divided_by_the_incoming_gradient():
    def native(a, b):
        return (a.square() + b.square()).sum() / 2 / len(a)

    case = case_of(mistakes.Divided, native, (lambda: matrix()[0], lambda: matrix()[1]))
    result = texts(corrections_of(case))
    assert {new for _, new in result} == {"(a / count * g, b / count)", "(a / count, b / count * g)"}, result
