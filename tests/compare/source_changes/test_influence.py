"""Promise: edits of expressions without influence on what is wrong are not tried."""

from __future__ import annotations

import ast

import pytest
import torch
from torch.autograd import Function

from compare import Case, compare
from compare.gradients.source_changes import search
from compare.gradients.source_changes.candidates import Rank
from compare.gradients.source_changes.ending_loops import may_count_values
from compare.gradients.source_changes.influence import Influence

pytestmark = pytest.mark.usefixtures("few_edits")


class Product(Function):
    """x² w, whose gradient of x is half of what it should be."""

    @staticmethod
    def forward(ctx, x, w):
        squares, kept = x * x, w + 0
        ctx.save_for_backward(x, squares, kept)
        return squares * w

    @staticmethod
    def backward(ctx, g):
        x, squares, w = ctx.saved_tensors
        both = g / 1
        first = both[:2] * 1
        gx = torch.cat([first, both[2:]]) * w * x
        gx.view(-1).mul_((x != 9).view(-1))
        return gx, (both * squares).sum(0) * torch.relu(w.sum() * 0 + 1)


@pytest.fixture(scope="module")
def ranks():
    """The rank of each expression, by its text."""
    patch = pytest.MonkeyPatch()
    by_text = {}

    class Watched(Influence):
        def __init__(self, candidates, *args):
            super().__init__(candidates, *args)
            for _, sites in candidates.functions:
                by_text.update({ast.unparse(site.node): self.rank(site) for site in sites})

    patch.setattr(search, "Influence", Watched)
    inputs = lambda: (torch.randn(4, 3), torch.randn(3))  # noqa: E731
    compare(Case("product", Product.apply, lambda x, w: x * x * w, inputs), dtypes=(torch.float64,))
    patch.undo()
    return by_text


@pytest.mark.parametrize(
    ("text", "rank"),
    [
        ("torch.cat([first, both[2:]]) * w", Rank.FIRST),
        ("w + 0", Rank.FIRST),  # in forward: the right gradient reads it, too, but only through 0
        ("(both * squares).sum(0)", Rank.NEVER),
        ("both * squares", Rank.NEVER),
        ("g / 1", Rank.LATER),  # the right gradient reads it, too
        ("both[:2] * 1", Rank.LATER),  # a part of the wrong elements
        ("squares * w", Rank.NEVER),  # the output, which is right
    ],
)
def test_an_expression_is_tried_by_its_influence(ranks, text, rank):
    assert ranks[text] is rank


@pytest.mark.parametrize("text", ["gx.view(-1)", "gx.view(-1).mul_((x != 9).view(-1))"])
def test_what_writes_into_another_tensor_may_help(ranks, text):
    assert ranks[text] is Rank.FIRST


def test_a_comparison_counts_by_the_results_that_it_may_have(ranks):
    assert ranks["x != 9"] is Rank.FIRST


BY_SIZES = "def f(x):\n    for n in range(len(x)):\n        x[n] *= 2"
BY_A_COMPARISON = "def f(x):\n    n = 0\n    while n < x.exp().sum():\n        n += 1"
BY_AN_ELEMENT = "def f(x):\n    steps = int(x.exp().sum())\n    return sum(x for _ in range(steps))"


@pytest.mark.parametrize(
    ("source", "may_be_huge"), [(BY_SIZES, False), (BY_A_COMPARISON, True), (BY_AN_ELEMENT, True)]
)
def test_nothing_has_another_value_where_a_loop_may_count_it(source, may_be_huge):
    assert may_count_values(ast.parse(source)) is may_be_huge
