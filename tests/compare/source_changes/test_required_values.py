"""Promise: the value that an expression of backward must have is known where it is the only one."""

from __future__ import annotations

import ast

import pytest
import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from compare import Case
from compare.gradients.case_runner import CaseRunner
from compare.gradients.diagnosis.native_oracle import NativeOracle
from compare.gradients.source_changes.called_functions import find_called_functions
from compare.gradients.source_changes.candidates import Candidates
from compare.gradients.source_changes.edited_runs import EditedRuns
from compare.gradients.source_changes.kept_values import KeptValues
from compare.gradients.source_changes.places import find_places
from compare.gradients.source_changes.recorded_equations import RecordedEquations
from compare.gradients.source_changes.required_values import required_values
from compare.gradients.variants import variants

DTYPES = (torch.float64,)
LOWEST = -0.5


class Mixed(Function):
    """The slope lacks a factor, and a product with a matrix hides it."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x.square() @ w

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        slope = x.sign()
        return (g @ w.mT) * slope, (x * x).mT @ g


class MixedBefore(Function):
    """The same before a product with a matrix."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return (x @ w).sin()

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        slope = x @ w
        inner = g * slope
        return inner @ w.mT, x.mT @ inner


class WritesInPlace(Function):
    """The same with a slope that is written into zeros, and a gradient that is summed up in place."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return (x @ w).sin()

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        slope = x @ w
        inner = torch.zeros_like(g)
        inner[:, :] = g * slope
        total = torch.zeros_like(x)
        total.add_(inner @ w.mT)
        return total, x.mT @ inner


class RowByRow(Function):
    """A slope that is one number for each row."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return (x @ w).sin()

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        inner = g * x.sum(1, keepdim=True).cos()
        return inner @ w.mT, x.mT @ inner


class Shared(Function):
    """One share for all elements; the gradient of each is a sum, which lacks what is below the range."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x.clamp(min=LOWEST) + w.sum() * (x - x.clamp(LOWEST, 1))

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        share = (x - 1).clamp(min=0)
        slope = (x >= LOWEST) + w.sum() * ((x > 1) | (x < LOWEST))
        return g * slope, (g * share).sum().expand_as(w)


class Rooted(Function):
    """Backward takes a root of 0, whose derivative is infinite."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x.clamp(min=0) * w.sum()

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        size = (x.clamp(min=0) ** 2).sqrt()
        return g * (x > 0) * w.sum(), (g * size).sum().expand_as(w) + 1


class Turned(Function):
    """The gradient of complex numbers, which is not conjugated."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x @ w

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return g @ w.mT, x.mT @ g


def required(function, native, *, with_probe=False, dtype=None):
    """Required values by the texts of the expressions, and the inputs."""
    inputs = lambda: {"x": torch.randn(4, 3, dtype=dtype), "w": torch.randn(3, 3, dtype=dtype)}  # noqa: E731
    case = Case("mixed", function.apply, native, inputs)
    runner = CaseRunner(case, "cpu", 0, DTYPES)
    list(runner.rows(next(iter(variants(DTYPES)))))
    runs = EditedRuns(runner, runner.mismatches[0], KeptValues(case.ours))
    runs.prepare(num_calls=100)
    places = find_places(Candidates(find_called_functions(runs.run_once)[0]), runs.run)
    oracle = NativeOracle(case, runner.native_rerunner, 0)
    probe = oracle.probe(runner.mismatches[0].variant) if with_probe else None
    known = required_values(places, RecordedEquations(places, runs, runner.mismatches), probe)
    first = runner.mismatches[0].inputs
    return {ast.unparse(each.place.site.node): each for each in known}, first["x"], first["w"]


def test_a_factor_after_a_product_of_matrices_is_known():
    values, x, _ = required(Mixed, lambda x, w: x.square() @ w)
    torch.testing.assert_close(values["x.sign()"].value, [2 * x])
    assert values["x.sign()"].quantities == {"gradient of x"}
    assert "(x * x).mT @ g" not in values  # no other value of it makes the gradient of x right
    assert "x" not in values  # the derivative of its sign is 0


@pytest.mark.parametrize("function", [MixedBefore, WritesInPlace])
def test_a_factor_before_products_of_matrices_is_known(function):
    values, x, w = required(function, lambda x, w: (x @ w).sin())
    torch.testing.assert_close(values["slope"].value, [(x @ w).cos()])
    assert values["slope"].quantities == {"gradient of x", "gradient of w"}


def test_one_number_for_each_row_is_not_enough():
    values, _, _ = required(RowByRow, lambda x, w: (x @ w).sin())
    assert "g * x.sum(1, keepdim=True).cos()" in values
    assert "x.sum(1, keepdim=True).cos()" not in values


def test_several_incoming_gradients_tell_what_a_sum_leaves_open():
    native = lambda x, w: x.clamp(min=LOWEST) + w.sum() * (x - x.clamp(LOWEST, 1))  # noqa: E731
    values, _, _ = required(Shared, native)
    assert "share" not in values and "(g * share).sum()" in values
    values, x, _ = required(Shared, native, with_probe=True)
    torch.testing.assert_close(values["share"].value, [x - x.clamp(LOWEST, 1)])
    assert "g * share" not in values  # that has another value for every incoming gradient


def test_complex_gradients_require_nothing():
    assert required(Turned, torch.matmul, dtype=torch.complex64)[0] == {}


def test_an_infinite_derivative_tells_nothing():
    values, _, _ = required(Rooted, lambda x, w: x.clamp(min=0) * w.sum(), with_probe=True)
    assert "x.clamp(min=0) ** 2" not in values
    assert "(g * size).sum().expand_as(w) + 1" in values
