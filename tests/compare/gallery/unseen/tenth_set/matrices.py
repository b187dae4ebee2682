"""Matrices: exponential of a symmetric matrix, Cayley transform."""

from __future__ import annotations

import torch

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas


def exponential(a):
    values, vectors = torch.linalg.eigh((a + a.mT) / 2)
    return (vectors * values.exp()) @ vectors.mT


def exponential_backward(g, a, *, through_vectors=True, symmetric=True):
    values, vectors = torch.linalg.eigh((a + a.mT) / 2)
    middle = (values[:, None] + values) / 2
    half = (values[:, None] - values) / 2
    # (exp(v_i) - exp(v_j)) / (v_i - v_j), without its cancellation
    quotients = middle.exp() * torch.where(half == 0, torch.ones_like(half), half.sinh() / half)
    quotients = quotients if through_vectors else quotients.diagonal().diag()
    grad = vectors @ (vectors.mT @ g @ vectors * quotients) @ vectors.mT
    return (grad + grad.mT) / 2 if symmetric else grad


def cayley(a):
    eye = torch.eye(a.shape[-1], dtype=a.dtype)
    return torch.linalg.solve(eye + a, eye - a)


def cayley_backward(g, a, *, transposed=True, numerator=True):
    eye = torch.eye(a.shape[-1], dtype=a.dtype)
    y = torch.linalg.solve(eye + a, eye - a)
    grad = torch.linalg.solve(eye + (a.mT if transposed else a), g)
    return -grad @ (y + eye if numerator else y).mT


OPERATIONS = [
    Formulas(
        "exponential of a symmetric matrix",
        exponential,
        lambda: {"a": torch.randn(4, 4)},
        exponential_backward,
        (
            Mistake(
                "exponential of a symmetric matrix, vectors as constants",
                lambda g, a: exponential_backward(g, a, through_vectors=False),
                named="the eigenvectors are treated as constants: the gradient flows through the eigenvalues only",
                kinds=("missing term", "wrong half"),
                named_words=(r"missing", r"constant", r"vectors", r"\beigh\b", r"diagonal"),
                located=(r"gradient of a",),
            ),
            Mistake(
                "exponential of a symmetric matrix, not symmetric",
                lambda g, a: exponential_backward(g, a, symmetric=False),
                named="the gradient is not symmetric: the use of a transposed is left out, its share given to a",
                kinds=("wrong half", "missing term", "factor of one term", "step left out"),
                named_words=(r"symmetr", r"transpos|\bmT\b", r"missing", r"one use|second use"),
                located=(r"gradient of a",),
            ),
        ),
        options={"whole_numbers": False},
    ),
    Formulas(
        "Cayley transform",
        cayley,
        lambda: {"a": 0.3 * torch.randn(2, 4, 4)},
        cayley_backward,
        (
            Mistake(
                "Cayley transform, inverse not transposed",
                lambda g, a: cayley_backward(g, a, transposed=False),
                named="backward solves with I + a instead of its transpose",
                kinds=("not transposed", "transposed", "another operand"),
                named_words=(r"transpos",),
                located=(r"gradient of a",),
            ),
            Mistake(
                "Cayley transform, numerator",
                lambda g, a: cayley_backward(g, a, numerator=False),
                named="the numerator I - a is treated as a constant",
                kinds=("missing term",),
                named_words=(r"missing", r"constant", r"\bsub\b|\brsub\b", r"one use|second use|used twice"),
                located=(r"gradient of a",),
            ),
        ),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
