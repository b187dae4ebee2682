"""Promise: a run counts as right only where every wrong number has become about the right one."""

from __future__ import annotations

import math

import pytest
import torch

from compare.gradients.diagnosis.mismatch import Mismatch, equal_up_to_rounding
from compare.gradients.run_variant import RunResult
from compare.gradients.source_changes.goals import Goal
from compare.gradients.variants import Variant

RIGHT = [1.0, 2.0, math.inf, math.nan, 5.0]
OURS = [1.0, -2.0, 0.0, 7.0, math.nan]  # all but the first are wrong


def gradient(numbers: list[float]) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def goal_of(ours: list[float], right: list[float]) -> Goal:
    wrong = ~torch.isclose(gradient(ours), gradient(right), equal_nan=True)
    run = RunResult({"gradient of x": gradient(ours)})
    variant = Variant(torch.float64)
    return Goal(Mismatch("gradient of x", variant, gradient(ours), gradient(right), wrong, 1e-12, {}, run))


@pytest.mark.parametrize(
    ("numbers", "is_right"),
    [
        (RIGHT, True),
        ([9.0, *RIGHT[1:]], True),  # what was right is compared later
        ([1.0, 2.003, *RIGHT[2:]], True),  # it has lost 999 of 1000 parts of its error
        ([1.0, 2.01, *RIGHT[2:]], False),
        ([*RIGHT[:4], -math.inf], False),
        ([*RIGHT[:2], -math.inf, *RIGHT[3:]], False),
        ([*RIGHT[:3], 7.0, 5.0], False),
        ([math.nan] * 5, False),
        (RIGHT[:4], False),
    ],
)
def test_every_wrong_number_is_compared(numbers, is_right):
    goal = goal_of(OURS, RIGHT)
    assert goal.is_reached(RunResult({"gradient of x": gradient(numbers)})) == is_right
    finite = goal_of(OURS[:2], RIGHT[:2])
    assert finite.is_reached(RunResult({"gradient of x": gradient(numbers[:2])})) == (abs(numbers[1] - 2) < 0.004)


def test_a_run_without_the_gradient_is_not_right():
    goal = goal_of(OURS, RIGHT)
    assert not goal.is_reached(RunResult({"gradient of x": None}))
    assert not goal.is_reached(RunResult({"gradient of x": gradient(RIGHT)}, ValueError("raised")))


@pytest.mark.parametrize(
    ("first", "second", "are_equal"),
    [
        ([1.0, 2.0], [1.0, 2.0 + 1e-10], True),
        ([1.0, 2.0], [1.0, 2.0 + 1e-8], False),
        ([1.0, math.inf, math.nan], [1.0, math.inf, math.nan], True),
        ([1.0, math.inf], [1.0, -math.inf], False),
        ([1.0, math.nan], [1.0, 2.0], False),
        ([1e308], [-1e308], False),  # their difference overflows
        ([0.0, 0.0], [0.0, 0.0], False),
        ([math.inf], [math.inf], False),
        ([], [], False),
        ([1.0], [1.0, 1.0], False),
    ],
)
def test_numbers_are_equal_up_to_rounding(first, second, are_equal):
    assert equal_up_to_rounding(gradient(first), gradient(second)) == are_equal
