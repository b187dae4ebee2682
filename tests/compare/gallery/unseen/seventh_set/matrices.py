"""Vectors and matrices: a layer with a low-rank update, the cross product, a reflection, the commutator."""

from __future__ import annotations

import torch
from torch.linalg import cross

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas

SCALE = 0.25


def low_rank(x, w, a, b):
    return x @ w + SCALE * (x @ a @ b)


def low_rank_backward(g, x, w, a, b, *, updated=True):
    grad_x = g @ w.mT
    grad_x = grad_x + SCALE * g @ b.mT @ a.mT if updated else grad_x
    return grad_x, x.mT @ g, SCALE * x.mT @ (g @ b.mT), SCALE * (x @ a).mT @ g


def cross_backward(g, a, b, *, sign=1):
    return cross(b, g), sign * cross(g, a)


def reflect(x, v):
    return x - 2 * torch.outer(x @ v, v) / (v @ v)


def reflect_backward(g, x, v, *, normalized=True):
    square, along = v @ v, x @ v
    grad_v = (along @ g + (g @ v) @ x) / square
    grad_v = grad_v - 2 * v * (along @ (g @ v)) / square**2 if normalized else grad_v
    return reflect(g, v), -2 * grad_v


def commutator(a, b):
    return a @ b - b @ a


def commutator_backward(g, a, b, *, transposed=True):
    return g @ b.mT - (b.mT if transposed else b) @ g, a.mT @ g - g @ a.mT


OPERATIONS = [
    Formulas(
        "layer with a low-rank update",
        low_rank,
        lambda: {"x": torch.randn(5, 4), "w": torch.randn(4, 3), "a": torch.randn(4, 2), "b": torch.randn(2, 3)},
        low_rank_backward,
        (
            Mistake(
                "layer with a low-rank update, input of the update",
                lambda g, *inputs: low_rank_backward(g, *inputs, updated=False),
                named="the gradient of x lacks the term of the low-rank update",
                kinds=("missing term",),
                named_words=(r"missing", r"constant", r"detach"),
                located=(r"gradient of x", r"matmul|@|\ba\b|\bb\b|\bmm\b|mul|argument"),
            ),
        ),
    ),
    Formulas(
        "cross product",
        cross,
        lambda: {"a": torch.randn(5, 3), "b": torch.randn(5, 3)},
        cross_backward,
        (
            Mistake(
                "cross product, order of the factors",
                lambda g, a, b: cross_backward(g, a, b, sign=-1),
                named="the factors of the cross product are exchanged: the gradient of b has the wrong sign",
                kinds=("constant factor",),
                named_words=(r"-1 times|\bsign\b|negative",),
                located=(r"gradient of b",),
            ),
        ),
    ),
    Formulas(
        "reflection",
        reflect,
        lambda: {"x": torch.randn(5, 4), "v": 0.5 + torch.rand(4)},
        reflect_backward,
        (
            Mistake(
                "reflection, length as a constant",
                lambda g, x, v: reflect_backward(g, x, v, normalized=False),
                named="the squared length of v, by which forward divides, is treated as a constant",
                kinds=("missing term",),
                named_words=(r"\bdiv", r"constant", r"missing"),
                located=(r"gradient of v", r"div|second argument|v @ v|dot"),
            ),
        ),
        options={"whole_numbers": False},
    ),
    Formulas(
        "commutator",
        commutator,
        lambda: {"a": torch.randn(2, 4, 4), "b": torch.randn(2, 4, 4)},
        commutator_backward,
        (
            Mistake(
                "commutator, second product not transposed",
                lambda g, a, b: commutator_backward(g, a, b, transposed=False),
                named="b is not transposed in the second term of the gradient of a",
                kinds=("transposed", "another operand", "not transposed"),
                named_words=(r"transpos", r"exchang"),
                located=(r"gradient of a\b",),
            ),
        ),
    ),
]

WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
