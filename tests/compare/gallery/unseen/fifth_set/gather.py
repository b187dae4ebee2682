"""Indices: weighted bags of embeddings, a softmax in each group."""

from __future__ import annotations

import torch

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas


def bags(table, s, index, bag):
    return table.new_zeros(3, table.shape[1]).index_add(0, bag, table[index] * s[:, None])


def bags_backward(g, table, s, index, bag, *, accumulated=True):
    rows = g[bag] * s[:, None]
    grad = torch.zeros_like(table)
    grad = grad.index_add(0, index, rows) if accumulated else grad.index_copy(0, index, rows)
    return grad, (g[bag] * table[index]).sum(1), None, None


def group_softmax(x, group):
    e = x.exp()
    return e / x.new_zeros(3, x.shape[1]).index_add(0, group, e)[group]


def group_softmax_backward(g, x, group, *, by_group=True):
    y = group_softmax(x, group)
    if by_group:
        total = x.new_zeros(3, x.shape[1]).index_add(0, group, g * y)[group]
    else:
        total = (g * y).sum(0)
    return y * (g - total), None


OPERATIONS = [
    Formulas(
        "weighted bags",
        bags,
        lambda: {
            "table": torch.randn(6, 4),
            "s": torch.randn(8),
            "index": torch.tensor([1, 4, 1, 0, 3, 4, 4, 2]),
            "bag": torch.tensor([0, 0, 0, 1, 1, 2, 2, 2]),
        },
        bags_backward,
        (
            Mistake(
                "weighted bags, repeated indices",
                lambda g, *inputs: bags_backward(g, *inputs, accumulated=False),
                named="rows 1 and 4 of the table, which are used several times, get the gradient of one use only",
                kinds=("missing term", "only at some indices", "only for some values"),
                named_words=(r"missing", r"rows? (\[)?1", r"repeat", r"several", r"overwrit"),
                located=(r"gradient of table", r"\[[14], |rows? (\[)?[14]|index"),
            ),
        ),
    ),
    Formulas(
        "softmax of groups",
        group_softmax,
        lambda: {"x": torch.randn(8, 2), "group": torch.tensor([0, 1, 0, 2, 1, 1, 2, 0])},
        group_softmax_backward,
        (
            Mistake(
                "softmax of groups, sum of all",
                lambda g, *inputs: group_softmax_backward(g, *inputs, by_group=False),
                named="the sum in the derivative is over all rows instead of the rows of a group",
                kinds=("wrong sum", "missing term"),
                named_words=(r"\bsum", r"group", r"too many|surplus|effect"),
                located=(r"gradient of x", r"row|dimension 0|group"),
            ),
        ),
    ),
]

WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
