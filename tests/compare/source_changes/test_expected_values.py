"""Promise: where no change of the source is enough, compare tells the expression that should have another value."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import Function

from compare import Case, compare
from compare.gradients.source_changes.called_functions import find_called_functions
from compare.gradients.source_changes.editable_function import EditableFunction
from compare.gradients.source_changes.edits import find_sites
from compare.gradients.source_changes.native_values import native_values
from compare.gradients.source_changes.recorded_values import builtin, record_values

pytestmark = pytest.mark.usefixtures("few_edits")

DTYPES = (torch.float64,)


class Attention(Function):
    """Rows over the sum of their squares, with a value of no use in the place of one gradient."""

    @staticmethod
    def forward(ctx, x, v):
        weights = x.square() / x.square().sum(1, keepdim=True)
        ctx.save_for_backward(x, v, weights)
        return weights @ v

    @staticmethod
    def backward(ctx, g):
        x, v, weights = ctx.saved_tensors
        received = g @ v.T
        squares = received.logsumexp(1, keepdim=True).expand_as(x) * weights.prod(1, keepdim=True).atan()
        return 2 * x * squares, weights.T @ g


def attention(x, v):
    squares = x.square()
    weights = squares / squares.sum(1, keepdim=True)
    return weights @ v


def test_the_expression_and_its_value_are_told():
    case = Case("attention", Attention.apply, attention, lambda: (torch.randn(5, 4), torch.randn(4, 3)))
    (finding,) = compare(case, dtypes=DTYPES).findings
    told = f"{finding.statement} {finding.evidence} {finding.correction}"
    line = Attention.backward.__code__.co_firstlineno + 4
    assert f"in line {line} of test_expected_values.py, `received.logsumexp(1, keepdim=True)" in told, finding
    assert f"should be the gradient of the result of square in line {attention.__code__.co_firstlineno + 1}" in told
    assert "with that value the gradient of x is right" in told, finding


class Recurrence(Function):
    """A linear recurrence; the derivative of the step is another function."""

    @staticmethod
    def forward(ctx, x, w):
        h, states = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            moved = w * h + x[:, t]
            h = moved.tanh()
            states.append(h)
        ctx.save_for_backward(w, torch.stack(states, 1))
        return h

    @staticmethod
    def backward(ctx, g):
        w, h = ctx.saved_tensors
        gx, carry = torch.zeros_like(h), g
        for t in reversed(range(h.shape[1])):
            inner = carry.atan().exp() * (1 - h[:, t].square()).sin()
            gx[:, t] = inner
            carry = inner * w
        return gx, None


class SineOfRecurrence(Function):
    """The same with a step of which backward has not what its derivative takes."""

    @staticmethod
    def forward(ctx, x, w):
        h, states = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            moved = w * h + x[:, t]
            h = moved.tanh().sin()
            states.append(h)
        ctx.save_for_backward(w, torch.stack(states, 1))
        return h

    backward = staticmethod(Recurrence.backward)


def recurrence(x, w, step=torch.tanh):
    h = torch.zeros_like(x[:, 0])
    for t in range(x.shape[1]):
        h = step(w * h + x[:, t])
    return h


def told_of_a_recurrence(function, step):
    w = torch.tensor([0.5, -0.75])
    case = Case(
        "recurrence",
        lambda x: function.apply(x, w.to(x)),
        lambda x: recurrence(x, w.to(x), step),
        lambda: (torch.randn(3, 4, 2),),
    )
    (finding,) = compare(case, dtypes=DTYPES).findings
    return f"{finding.statement} {finding.evidence} {finding.correction}"


LINE = f"in line {Recurrence.backward.__code__.co_firstlineno + 5} of test_expected_values.py, "
STEP = "`carry.atan().exp() * (1 - h[:, t].square()).sin()`"


def test_the_term_of_each_step_of_a_loop_is_told():
    told = told_of_a_recurrence(Recurrence, torch.tanh)
    assert f"{LINE}{STEP} should be `carry * (1 - h[:, t].square())`: with this change all comparisons" in told, told


def test_values_of_a_loop_are_tried_from_the_last_one_on():
    told = told_of_a_recurrence(SineOfRecurrence, lambda x: x.tanh().sin())
    line = SineOfRecurrence.forward.__code__.co_firstlineno + 4
    expected = f"{LINE}{STEP} should be the gradient of `moved` in line {line}, at each step: with that value"
    assert expected in told, told


def test_values_of_native_are_named_and_those_of_loops_in_order():
    def native(x):
        y = x.exp()
        for _ in range(3):
            y = y * x
        return y.sin() + y.cos()

    values = native_values(
        native, {"x": torch.randn(3, dtype=torch.float64)}, lambda n, output: torch.ones_like(output)
    )
    numbers = {words.split(" in line")[0]: len(value) for words, value in values.items()}
    results = {"the result of exp": 1, "the result of mul": 3, "the result of sin": 1, "the result of cos": 1}
    results["the result of add"] = 1
    assert numbers == results | {f"the gradient of {words}": number for words, number in results.items()}
    assert native_values(lambda x: x.missing, {"x": torch.ones(2)}, lambda n, output: output) == {}


def in_a_loop(x):
    y = x + 1
    for n in range(2):
        y = y * (n + 2)
    return y.sum()


def test_values_of_expressions_are_recorded_in_order():
    x = torch.arange(3.0)
    (called,) = (c for c in find_called_functions(lambda: in_a_loop(x))[0] if c.code is in_a_loop.__code__)
    function = EditableFunction(called)
    sites = find_sites(called, function.node)
    sites = [site for site in sites if type(site.node).__name__ in ("BinOp", "Call")]
    code = in_a_loop.__code__
    values = record_values(function, sites, lambda: in_a_loop(x))
    assert in_a_loop.__code__ is code
    lines = {sites[n].node.lineno - code.co_firstlineno: value for n, value in values.items()}
    assert {line: [v.tolist() for v in value] for line, value in lines.items()} == {
        1: [[1, 2, 3]],
        3: [[2, 4, 6], [6, 12, 18]],
        4: [36],
    }


def test_a_builtin_is_taken_back():
    with builtin("__compare_test__", 3):
        assert __compare_test__ == 3  # noqa: F821
    assert not hasattr(__builtins__, "__compare_test__")
