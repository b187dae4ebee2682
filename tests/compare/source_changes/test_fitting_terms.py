"""Promise: a term or a factor of several parts that is missing is told, where no small change is enough."""

from __future__ import annotations

import ast

import pytest
import torch
from torch.autograd import Function

from compare import Case, compare
from compare.gradients.source_changes.edits import Place, Site
from compare.gradients.source_changes.fitting_terms import Terms
from compare.gradients.source_changes.ingredients import Ingredient
from compare.gradients.source_changes.terms import terms_of_shape

pytestmark = pytest.mark.usefixtures("few_edits")

DTYPES = (torch.float64,)
STEP = 0.3


class Focal(Function):
    """The derivative of the first factor is missing."""

    @staticmethod
    def forward(ctx, x):
        p = torch.sigmoid(x)
        ctx.save_for_backward(p)
        return -((1 - p) ** 2) * p.log()

    @staticmethod
    def backward(ctx, g):
        (p,) = ctx.saved_tensors
        slope = -((1 - p) ** 2) / p
        return g * slope * p * (1 - p)


def focal(x):
    p = x.sigmoid()
    return -((1 - p) ** 2) * p.log()


class Heun(Function):
    """The weight's gradient takes the second slope at the first point."""

    @staticmethod
    def forward(ctx, x, w):
        k1 = torch.tanh(x @ w.T)
        k2 = torch.tanh((x + STEP * k1) @ w.T)
        ctx.save_for_backward(x, w, k1, k2)
        return x + 0.5 * STEP * (k1 + k2)

    @staticmethod
    def backward(ctx, g):
        x, w, k1, k2 = ctx.saved_tensors
        a2 = 0.5 * STEP * g * (1 - k2 * k2)
        middle = a2 @ w
        a1 = (0.5 * STEP * g + STEP * middle) * (1 - k1 * k1)
        return g + middle + a1 @ w, (a1 + a2).T @ x


def heun(x, w):
    k1 = torch.tanh(x @ w.T)
    return x + STEP / 2 * (k1 + torch.tanh((x + STEP * k1) @ w.T))


def test_a_missing_term_is_told_where_it_belongs():
    case = Case("focal", Focal.apply, focal, lambda: (torch.randn(5, 4),))
    (finding,) = compare(case, dtypes=DTYPES).findings
    told = f"{finding.statement} {finding.evidence} {finding.correction}"
    assert "should be `g * (slope + 2 * ((1 - p) * p.log())) * p * (1 - p)`" in told, told


def test_a_matrix_product_with_a_named_number_is_told():
    case = Case("heun", Heun.apply, heun, lambda: (torch.randn(4, 3), torch.randn(3, 3)))
    (finding,) = compare(case, dtypes=DTYPES).findings
    told = f"{finding.statement} {finding.evidence} {finding.correction}"
    assert "(a1 + a2).T @ x + STEP * (a2.mT @ k1)" in told, told


A, B, C = (torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(n)) for n, shape in
           enumerate([(4, 3), (4, 3), (3,)]))  # fmt: skip
INGREDIENTS = [Ingredient(text, value) for text, value in {"a": A, "b": B, "c": C, "d": B.abs()}.items()]
FITTING = [
    (A, A + 2 * B * C, "a + 2 * (b * c)"),
    (A, A - (A * B).sum(1, keepdim=True) * C, "a - c * (a * b).sum(1, keepdim=True)"),
    (B, B / C**2, "b * (1 / c ** 2)"),
    (C, (A * B).sum(0), "(a * b).sum(0)"),
    (A, -(A * 0.3 * B.exp()), "-(step * (a * b.exp()))"),
]


def edited(present, expected):
    """Texts of the edits of an expression."""
    expression = ast.parse({id(A): "a", id(B): "b", id(C): "c"}[id(present)], mode="eval")
    site = Site(expression.body, Place(expression, "body", None), (expression,))
    terms = Terms(INGREDIENTS, expected.shape, {"step": 0.3})
    return [ast.unparse(new) for edit in terms.edits(site, present, expected) for _, _, new in edit.changes]


@pytest.mark.parametrize(("present", "expected", "text"), FITTING, ids=[text for *_, text in FITTING])
def test_terms_that_fit(present, expected, text):
    assert text in edited(present, expected)


def test_a_number_is_told_as_one():
    texts = edited(A, 0.5 * A)
    assert texts[0] == "a * 0.5", texts
    assert not any(text.startswith("a * (0.5 * ") for text in texts), texts  # d.sign() is 1, too


def test_nothing_fits_what_has_another_coefficient_or_is_no_term():
    assert edited(A, A + 1.234 * B) == []
    assert edited(A, torch.arange(12.0).view(4, 3).sin()) == []
    assert edited(A, A * float("nan")) == []


def test_each_term_has_the_value_of_its_text():
    scope = {"a": A, "b": B, "c": C, "d": B.abs()}
    count = 0
    for term in terms_of_shape(INGREDIENTS, torch.Size([4, 3])):
        value = eval(compile(ast.fix_missing_locations(ast.Expression(term.node)), "term", "eval"), scope)
        assert torch.allclose(value.expand(4, 3), term.value, equal_nan=True), ast.unparse(term.node)
        count += 1
    assert count > 200
