"""Places: the median of windows, the largest elements in their order, a table that is a product of two."""

from __future__ import annotations

import torch

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas

WINDOW = 3
KEPT = 3
ROWS = 4
WORDS = torch.tensor([1, 14, 6, 3, 8, 12, 6, 5, 11])
OTHER_PLACE = (
    r"\bplaces?\b|\bpositions?\b|permut|\border\b",
    r"\bind(ex|ices)\b.*(instead|order|rotat|exchang|one too|other)|(other|wrong|instead).*\bind(ex|ices)\b",
    r"shift|off by one",
)


def medians(x):
    return x.unfold(1, WINDOW, 1).median(2).values


def medians_backward(g, x, *, place=None):
    if place is None:
        place = x.unfold(1, WINDOW, 1).median(2).indices
    index = torch.arange(g.shape[1]) + place
    return torch.zeros_like(x).scatter_add(1, index.expand_as(g), g)


def largest_in_order(x):
    return x.gather(1, x.topk(KEPT, 1).indices.sort(1).values)


def largest_in_order_backward(g, x, *, sorted_places=True):
    index = x.topk(KEPT, 1).indices
    return torch.zeros_like(x).scatter(1, index.sort(1).values if sorted_places else index, g)


def of_two_tables(a, b, word):
    return a[word // ROWS] * b[word % ROWS]


def of_two_tables_backward(g, a, b, word, *, exchanged=False):
    quotient, remainder = word // ROWS, word % ROWS
    grad_a, grad_b = g * b[remainder], g * a[quotient]
    if exchanged:
        quotient, remainder = remainder, quotient
    return (
        torch.zeros_like(a).index_add(0, quotient, grad_a),
        torch.zeros_like(b).index_add(0, remainder, grad_b),
        None,
    )


OPERATIONS = [
    Formulas(
        "median of windows",
        medians,
        lambda: {"x": torch.randn(3, 8)},
        medians_backward,
        (
            Mistake(
                "median of windows, centre",
                lambda g, x: medians_backward(g, x, place=1),
                named="the gradient goes to the centre of each window instead of its median",
                kinds=("another operand", "permuted", "shifted", "step left out", "missing term", "not transposed"),
                named_words=(r"\bmedian\b", r"cent(re|er)|middle", *OTHER_PLACE),
                located=(r"gradient of x",),
            ),
        ),
    ),
    Formulas(
        "three largest in their order",
        largest_in_order,
        lambda: {"x": torch.randn(4, 7)},
        largest_in_order_backward,
        (
            Mistake(
                "three largest in their order, order of the values",
                lambda g, x: largest_in_order_backward(g, x, sorted_places=False),
                named="backward puts the incoming gradient at the places in the order of the values, not sorted",
                kinds=("permuted", "another operand", "step left out", "not transposed"),
                named_words=(r"\bsort", *OTHER_PLACE),
                located=(r"gradient of x",),
            ),
        ),
    ),
    Formulas(
        "product of two tables",
        of_two_tables,
        lambda: {"a": torch.randn(4, 3), "b": torch.randn(4, 3), "word": WORDS},
        of_two_tables_backward,
        (
            Mistake(
                "product of two tables, indices exchanged",
                lambda g, *inputs: of_two_tables_backward(g, *inputs, exchanged=True),
                named="the quotient and the remainder of the word are exchanged as row indices of the two gradients",
                kinds=("permuted", "another operand", "shifted", "swapped", "not transposed"),
                named_words=(r"remainder|floor_divide|quotient|% ?4|// ?4", *OTHER_PLACE),
                located=(r"gradient of a|\ba and b\b", r"\bb\b"),
            ),
        ),
    ),
]

WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
