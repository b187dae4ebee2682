"""Promise: a gradient that is predicted for other values of an expression is the one that a run with them gives."""

from __future__ import annotations

import ast
from itertools import cycle

import pytest
import torch
from torch.autograd import Function

from compare import Case
from compare.gradients.case_runner import CaseRunner
from compare.gradients.source_changes.called_functions import find_called_functions
from compare.gradients.source_changes.candidates import Candidates
from compare.gradients.source_changes.edited_runs import EditedRuns
from compare.gradients.source_changes.kept_values import KeptValues
from compare.gradients.source_changes.places import find_places, one_by_one
from compare.gradients.source_changes.predicted_gradients import PredictedGradients
from compare.gradients.source_changes.recorded_equations import RecordedEquations
from compare.gradients.source_changes.recorded_values import INSTEAD, builtin
from compare.gradients.variants import variants

DTYPES = (torch.float64,)


class Scaled(Function):
    """Backward lacks the weight in the gradient of x."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x.sin() * w

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        total = torch.zeros_like(w)
        total.index_add_(0, torch.tensor([0, 1, 2, 3]), g * x.sin())
        return g * x.cos(), total


def scaled(x, w):
    return x.sin() * w


class Decayed(Function):
    """A sum that decays; the incoming gradient of each step but the first is left out."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        state = torch.zeros_like(x[0])
        for step in x:
            state = w * state + step
        return state * 1.0

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        states = [torch.zeros_like(x[0])]
        for step in x:
            states.append(w * states[-1] + step)
        to_x, to_w, passed = torch.zeros_like(x), torch.zeros_like(w), g
        for n in range(len(x) - 1, -1, -1):
            to_x[n] = 2 * passed
            to_w = to_w + passed * states[n]
            passed = passed * w
        return to_x, to_w


def decayed(x, w):
    state = torch.zeros_like(x[0])
    for step in x:
        state = w * state + step
    return state * 1.0


class Turned(Function):
    """Backward computes with complex numbers, and lacks the sign."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x.cos() * w

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        turn = torch.exp(1j * x)
        return g * w * turn.imag, g * turn.real


def cosine(x, w):
    return x.cos() * w


CASES = {
    "one step": Case("scaled", Scaled.apply, scaled, lambda: (torch.randn(4), torch.randn(4))),
    "complex": Case("cosine", Turned.apply, cosine, lambda: (torch.randn(4), torch.randn(4))),
    "loop": Case("decayed", Decayed.apply, decayed, lambda: (torch.randn(3, 4), torch.randn(4))),
}
KNOWN = {  # expressions in whose values the gradients are affine, and some in which they are not
    "one step": ({"x.cos()", "g * x.cos()", "g * x.sin()", "torch.zeros_like(w)"}, {"x"}),
    "complex": ({"g * w"}, {"turn", "x", "1j * x"}),
    "loop": ({"2 * passed", "passed * states[n]"}, {"w * states[-1] + step"}),
}


def predictions(name):
    """The places of a case by their texts, its runs, and the predicted gradients."""
    case = CASES[name]
    runner = CaseRunner(case, "cpu", 0, DTYPES)
    list(runner.rows(next(iter(variants(DTYPES)))))
    runs = EditedRuns(runner, runner.mismatches[0], KeptValues(case.ours))
    runs.prepare(num_calls=100)
    called = [each for each in find_called_functions(runs.run_once)[0] if each.in_backward]
    places = [place for place in find_places(Candidates(called), runs.run) if not place.more]
    recorded = RecordedEquations(places, runs, runner.mismatches)
    return {ast.unparse(place.site.node): place for place in places}, runs, PredictedGradients(recorded)


@pytest.mark.filterwarnings("error:Casting complex values")
@pytest.mark.parametrize("is_factor", [False, True], ids=["values", "factors"])
@pytest.mark.parametrize("name", CASES)
def test_what_is_predicted_is_what_a_run_gives(name, is_factor):
    places, runs, predicted = predictions(name)
    affine = set()
    for text, place in places.items():
        if not (place.present[0].is_floating_point() or place.present[0].is_complex()):
            continue
        numbers = [torch.randn_like(value) for value in place.present]
        got = predicted.with_factors(place, numbers) if is_factor else predicted.with_values(place, numbers)
        if got is None:
            continue
        affine.add(text)
        left = cycle(numbers)
        codes = place.code_with_changed_value if is_factor else place.code_with_value
        instead = (
            (lambda _, value, left=left: value * next(left)) if is_factor else one_by_one(numbers, torch.float64)
        )
        with builtin(INSTEAD, instead):
            result = runs.run_edited(codes)
        for quantity, value in got.items():
            torch.testing.assert_close(
                value, result.values[quantity].flatten(), msg=lambda m, text=text: f"{text}: {m}"
            )
    right, wrong = KNOWN[name]
    assert right <= affine, affine
    assert not wrong & affine, affine


def test_a_value_that_the_function_writes_into_is_a_copy():
    places, runs, _ = predictions("one step")
    value = torch.zeros(4, dtype=torch.float64)
    place = places["torch.zeros_like(w)"]
    with builtin(INSTEAD, one_by_one([value], torch.float64)):
        result = runs.run_edited(place.code_with_value)
    assert result.values["gradient of w"].abs().sum() > 0
    assert value.abs().sum() == 0
