"""Promise: a Function that has nothing to be compared with is compared with finite differences of its own forward."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck

import compare
from tests.compare.gallery.wrong_function import hand_written, randn

pytestmark = pytest.mark.usefixtures("short_search")


def softmax_backward(g, x):
    y = x.softmax(1)
    return y * (g - (g * y).sum(1, keepdim=True))


def tanh_backward(g, x):
    return g * (1 - x.tanh() ** 2)


RIGHT = {
    "tanh": (torch.tanh, tanh_backward, randn(x=(3, 4))),
    "matrix product": (torch.matmul, lambda g, x, w: (g @ w.mT, x.mT @ g), randn(x=(3, 4), w=(4, 2))),
    "softmax": (lambda x: x.softmax(1), softmax_backward, randn(x=(3, 4))),
    "relu": (torch.relu, lambda g, x: g * (x > 0), randn(x=(3, 4))),
    "largest of a row": (
        lambda x: x.amax(1), lambda g, x: g[:, None] * (x == x.amax(1, keepdim=True)), randn(x=(3, 4))),
    "two outputs": (lambda x: (x.sin(), x.cos()), lambda a, b, x: a * x.cos() - b * x.sin(), randn(x=(3, 4))),
    "complex square": (
        torch.square, lambda g, z: 2 * g * z.conj(), lambda: {"z": torch.randn(3, 2, dtype=torch.complex128)}),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_a_correct_function_is_accepted(name):
    forward, backward, make_inputs = RIGHT[name]
    comparison = compare.compare(compare.Case(name, hand_written(forward, backward), None, make_inputs))
    assert comparison.ok, str(comparison)
    assert "the forward is unchecked" in str(comparison)
    assert {row.quantity for row in comparison.rows if row.is_compared} > {"output"}


WRONG = {
    "factor": (torch.tanh, lambda g, x: (1 + 1e-6) * tanh_backward(g, x), randn(x=(3, 4)), "1 + 1e-06 times"),
    "one element": (
        torch.tanh, lambda g, x: tanh_backward(g, x) * (1 + 1e-6 * (x == x.max())), randn(x=(3, 4)), "1 of 12"),
    "missing term": (lambda x: x.softmax(1), lambda g, x: g * x.softmax(1), randn(x=(3, 4)), "missing term"),
    "incoming gradient": (torch.sin, lambda g, x: x * x.cos(), randn(x=(3, 4)), "does not change"),
    "not linear": (torch.sin, lambda g, x: g.clamp(-9, 9) * x.cos(), randn(x=(3, 4)), "2**20 times"),
    "conjugate": (
        torch.square, lambda g, z: 2 * g * z, lambda: {"z": torch.randn(3, 2, dtype=torch.cdouble)}, "z conjugated"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_gradient_is_found(name):
    forward, backward, make_inputs, words = WRONG[name]
    comparison = compare.compare(compare.Case(name, hand_written(forward, backward), None, make_inputs))
    assert not comparison.ok and words in str(comparison), str(comparison)


def test_an_error_of_a_millionth_that_gradcheck_accepts_is_found():
    forward, backward, make_inputs, _ = WRONG["factor"]
    function = hand_written(forward, backward)
    inputs = [value.double().requires_grad_() for value in make_inputs().values()]
    assert gradcheck(function, inputs)
    assert not compare.compare(compare.Case("factor", function, None, make_inputs), dtypes=[torch.float64]).ok


def test_elements_at_a_kink_are_told_and_not_compared():
    make_inputs = lambda: {"x": torch.tensor([-1.0, 0.0, 0.0, 2.0])}  # noqa: E731
    relu = hand_written(torch.relu, lambda g, x: 7 * g * (x >= 0) - 6 * g * (x > 0))  # 7 at 0
    comparison = compare.compare(compare.Case("relu", relu, None, make_inputs), dtypes=[torch.float64])
    assert comparison.ok, str(comparison)
    rows = [row for row in comparison.rows if row.quantity == "gradient of x" and row.variant.data == "drawn"]
    assert rows[0].undetermined == 2
    assert "Finite differences give no gradient at" in str(comparison)


def test_a_module_is_compared_without_a_twin():
    comparison = compare.compare(
        compare.Case.from_modules("layer", nn.Linear(3, 2), None, lambda: torch.randn(4, 3)), dtypes=[torch.float64]
    )
    assert comparison.ok, str(comparison)
    assert {row.quantity for row in comparison.rows} >= {
        "gradient of weight",
        "gradient of bias",
        "gradient of input",
    }
