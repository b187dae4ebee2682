"""Graphs: means of neighbours with learned edges, products of the two ends of each edge."""

from __future__ import annotations

import torch

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas


def edges():
    return {
        "source": torch.tensor([0, 1, 1, 2, 3, 4, 4, 4]),
        "target": torch.tensor([1, 0, 2, 3, 3, 0, 1, 3]),
    }


def degree(target, like):
    return target.bincount(minlength=len(like)).clamp(min=1).to(like.dtype)[:, None]


def neighbours(x, w, source, target):
    return torch.zeros_like(x).index_add(0, target, w[:, None] * x[source]) / degree(target, x)


def neighbours_backward(g, x, w, source, target, *, degree_of="target"):
    share = (g / degree(target, x))[target]
    grad_w = (share * x[source]).sum(1)
    if degree_of == "source":
        share = g[target] / degree(target, x)[source]
    return torch.zeros_like(x).index_add(0, source, w[:, None] * share), grad_w, None, None


def ends(x, source, target):
    return (x[source] * x[target]).sum(1)


def ends_backward(g, x, source, target, *, both=True):
    grad = torch.zeros_like(x).index_add(0, source, g[:, None] * x[target])
    return grad.index_add(0, target, g[:, None] * x[source]) if both else grad, None, None


OPERATIONS = [
    Formulas(
        "means of neighbours",
        neighbours,
        lambda: {"x": torch.randn(5, 3), "w": torch.randn(8), **edges()},
        neighbours_backward,
        (
            Mistake(
                "means of neighbours, degree of the source",
                lambda g, *inputs: neighbours_backward(g, *inputs, degree_of="source"),
                named="the gradient of x divides by the degree of each edge's source instead of its target",
                kinds=("another operand", "permuted", "factor by element"),
                named_words=(r"\bsource\b", r"\btarget\b", r"degree", r"bincount", r"\bdiv\b"),
                located=(r"gradient of x",),
            ),
        ),
    ),
    Formulas(
        "products of ends",
        ends,
        lambda: {"x": torch.randn(5, 3), **edges()},
        ends_backward,
        (
            Mistake(
                "products of ends, second use",
                lambda g, *inputs: ends_backward(g, *inputs, both=False),
                named="the term of the target, x's second use, is missing",
                kinds=("missing term",),
                named_words=(r"missing", r"constant", r"no effect"),
                located=(r"gradient of x", r"index|select|gather|mul|target|argument"),
            ),
        ),
    ),
]

WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
