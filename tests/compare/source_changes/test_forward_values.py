"""Promise: what forward computes on the way explains backward: left-out derivatives, values of its steps."""

from __future__ import annotations

import pytest
import torch

from compare import Case, compare
from compare.gradients.source_changes.called_functions import find_called_functions
from compare.gradients.source_changes.candidates import Candidates
from compare.gradients.source_changes.forward_runs import run_forwards
from compare.gradients.source_changes.forward_values import forward_values, step_derivatives
from compare.gradients.source_changes.watched_functions import classes_of, watched
from tests.compare.source_changes import forward_mistakes as mistakes
from tests.compare.source_changes.reading_mistakes import TwoBounds
from tests.compare.source_changes.test_corrections import DTYPES, case_of, corrections_of, matrix, texts

pytestmark = pytest.mark.usefixtures("few_edits")


def maps():
    return torch.randn(2, 3, 3)


def scales():
    return torch.randn(1, 1, 3)


def told(function, native, inputs):
    (finding,) = compare(case_of(function, native, inputs), dtypes=DTYPES).findings
    return f"{finding.statement} {finding.evidence} {finding.correction}"


def line_of(function, shift):
    return function.__code__.co_firstlineno + shift


def half_clamped(x):
    return torch.cat((x[:, :2].clamp(-0.5, 0.5), x[:, 2:].relu()), 1).exp().cumsum(1)


def test_two_masks_that_are_left_out_are_told_with_their_steps():
    text = told(mistakes.HalfClamped, half_clamped, (matrix,))
    line = line_of(mistakes.HalfClamped.forward, 2)
    assert f"multiplied by the derivative of `x[:, :2].clamp(-0.5, 0.5)` in line {line}" in text, text
    assert f"multiplied by the derivative of `x[:, 2:].relu()` in line {line + 1}" in text, text
    assert "with these values the gradient of x is right" in text, text


def test_a_derivative_is_told_that_backward_cannot_compute():
    text = told(mistakes.Sums, lambda x: torch.special.erf(x).sin().cumsum(1), (matrix,))
    line = line_of(mistakes.Sums.forward, 2)
    assert f"should be multiplied by the derivative of `torch.special.erf(x)` in line {line}" in text, text


def test_a_mask_is_told_that_a_step_of_forward_has():
    native = lambda x, a: torch.min(x * a.detach(), x.clamp(-0.5, 0.5) * a.detach())  # noqa: E731
    report = str(compare(case_of(TwoBounds, native, (matrix, matrix)), dtypes=DTYPES))
    line = line_of(TwoBounds.forward, 3)
    words = f"should be true where the derivative of `torch.min(x * a, x.clamp(-0.5, 0.5) * a)` in line {line}"
    assert words in report, report


def test_a_forward_that_autograd_cannot_follow_explains_nothing():
    run = lambda: mistakes.OpaqueSums.apply(torch.randn(3, 4, requires_grad=True)).sum().backward()  # noqa: E731
    called, _ = find_called_functions(run)
    runs = run_forwards(Candidates(called).functions, run)
    assert runs and not any("gradient" in words for words in forward_values(runs))
    assert step_derivatives(runs) == {}


def test_values_of_the_steps_of_forward_are_told():
    def native(x, w):
        for n in range(3):
            x = x + w[n] * x.sin()
        return x

    text = told(mistakes.Sines, native, (matrix, lambda: torch.rand(3)))
    lines = line_of(mistakes.Sines.backward, 5), line_of(mistakes.Sines.forward, 4)
    assert f"in line {lines[0]} of forward_mistakes.py, `x` should be `y` as line {lines[1]} reads it" in text, text
    assert f"at each step (also in line {lines[0] + 1})" in text, text


@pytest.mark.parametrize(
    ("function", "native", "inputs", "new"),
    [
        (mistakes.Rows, lambda x: x[mistakes.ROWS], (lambda: matrix(4, 3),), ".index_add(0, ROWS, g"),
        (
            mistakes.Scaled,
            torch.mul,
            (lambda: torch.randn(2, 3, 3), lambda: torch.randn(1, 1, 3)),
            "sum(dim, keepdim=True)",
        ),
    ],
)
def test_the_change_is_told(function, native, inputs, new):
    corrections = corrections_of(case_of(function, native, inputs), max_calls=600_000)
    assert corrections and all(c.makes_all_right for c in corrections)
    assert any(new in after for _, after in texts(corrections)), texts(corrections)


def test_neighbours_become_halves_at_all_places():
    angle = torch.tensor([0.5, -0.25])

    def native(x):
        (a, b), turn = x.chunk(2, -1), angle.to(x)
        return torch.cat((a * turn.cos() - b * turn.sin(), a * turn.sin() + b * turn.cos()), -1)

    case = Case("rotation", lambda x: mistakes.Rotation.apply(x, angle.to(x)), native, lambda: (matrix(),))
    corrections = corrections_of(case, max_calls=600_000)
    news = [change.new for change in corrections[0].changes]
    assert any("g[:, :g.shape[-1] // 2]" in new for new in news) and any("torch.cat(" in new for new in news), news


def test_gradients_and_derivatives_of_forward_are_those_of_autograd():
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    run = lambda: mistakes.HalfClamped.apply(x).square().sum().backward()  # noqa: E731
    called, _ = find_called_functions(run)
    runs = run_forwards(Candidates(called).functions, run)
    low = x[:, :2].clamp(-0.5, 0.5).detach().requires_grad_()
    output = torch.cat((low, x[:, 2:].relu()), 1).exp().cumsum(1)
    (expected,) = torch.autograd.grad(output.square().sum(), low)
    values = forward_values(runs)
    (got,) = next(each for words, each in values.items() if words.startswith("the gradient of `low`"))
    torch.testing.assert_close(got, expected)
    (mask,) = next(each for words, each in step_derivatives(runs).items() if "clamp(-0.5, 0.5)`" in words)
    assert torch.equal(mask, (x[:, :2].abs() <= 0.5).double())


def test_watched_functions_are_as_before_and_their_calls_are_known():
    forward, backward = vars(mistakes.Scaled)["forward"], vars(mistakes.Scaled)["backward"]
    assert classes_of({mistakes.Scaled.forward}) == [mistakes.Scaled]
    x, scale = torch.randn(2, 3, 3, requires_grad=True), torch.randn(1, 1, 3, requires_grad=True)
    with watched([mistakes.Scaled, mistakes.Sums]) as calls:
        mistakes.Scaled.apply(x, scale).sum().backward()
        mistakes.Sums.apply(x).sum().backward()
    assert [call.has_context for call in calls] == [True, False]
    assert not any(call.returns_other_shapes for call in calls) and all(len(call.received) == 1 for call in calls)
    assert vars(mistakes.Scaled)["forward"] is forward and vars(mistakes.Scaled)["backward"] is backward
    assert "setup_context" in vars(mistakes.Sums) and "setup_context" not in vars(mistakes.Scaled)
