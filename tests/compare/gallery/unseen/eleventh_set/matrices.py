"""Matrices: the polar factor, three bands; quotients of complex numbers."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas

OFFSETS = (-1, 0, 1)


def polar_factor(a):
    u, _, vh = torch.linalg.svd(a, full_matrices=False)
    return u @ vh


def polar_factor_backward(g, a, *, outside=True):
    u, s, vh = torch.linalg.svd(a, full_matrices=False)
    inner = u.mT @ g @ vh.mT
    grad = u @ ((inner - inner.mT) / (s[:, None] + s)) @ vh
    if outside:
        grad = grad + (g - u @ (u.mT @ g)) @ vh.mT / s @ vh
    return grad


def banded(bands, x):
    padded = F.pad(x, (1, 1))
    n = x.shape[1]
    return sum(bands[j] * padded[:, 1 + k : 1 + k + n] for j, k in enumerate(OFFSETS))


def banded_backward(g, bands, x, *, by_column=False):
    n = x.shape[1]
    padded_x, padded_g = F.pad(x, (1, 1)), F.pad(g, (1, 1))
    grad_bands = torch.zeros_like(bands)
    grad_x = torch.zeros_like(padded_x)
    for j, k in enumerate(OFFSETS):
        grad_x[:, 1 + k : 1 + k + n] += bands[j] * g
        if by_column:
            grad_bands[j] = (padded_g[:, 1 - k : 1 - k + n] * x).sum(0)
        else:
            grad_bands[j] = (g * padded_x[:, 1 + k : 1 + k + n]).sum(0)
    return grad_bands, grad_x[:, 1:-1]


def quotient_backward(g, a, b, *, conjugate=True):
    return g / b.conj(), -g * (a / b**2).conj() if conjugate else -g * a.conj() / b**2


OPERATIONS = [
    Formulas(
        "polar factor of a tall matrix",
        polar_factor,
        lambda: {"a": torch.randn(5, 3)},
        polar_factor_backward,
        (
            Mistake(
                "polar factor of a tall matrix, outside of its columns",
                lambda g, a: polar_factor_backward(g, a, outside=False),
                named="the term of the incoming gradient outside of the columns of u, (I - u u^T) g, is missing",
                kinds=("missing term",),
                named_words=(r"missing", r"constant", r"no effect", r"project|outside|column space"),
                located=(r"gradient of a",),
            ),
        ),
        options={"whole_numbers": False},
    ),
    Formulas(
        "matrix of three bands",
        banded,
        lambda: {"bands": torch.randn(3, 6), "x": torch.randn(2, 6)},
        banded_backward,
        (
            Mistake(
                "matrix of three bands, index of the column",
                lambda g, bands, x: banded_backward(g, bands, x, by_column=True),
                named="the gradient of bands is stored at the column of the matrix, and forward reads it at the row",
                kinds=("shifted", "permuted", "another operand", "only at some indices", "not transposed"),
                named_words=(
                    r"shift|rotat",
                    r"\bplaces?\b|\bpositions?\b",
                    r"\bcolumns?\b.*\brows?\b",
                    r"\bind(ex|ices)\b.*(instead|order|rotat|one too|other)|(other|wrong|instead).*\bind(ex|ices)\b",
                ),
                located=(r"gradient of bands",),
            ),
        ),
    ),
    Formulas(
        "complex quotient",
        torch.div,
        lambda: {
            "a": torch.randn(5, 4, dtype=torch.complex64),
            "b": torch.polar(0.5 + torch.rand(5, 4), 6 * torch.rand(5, 4)),
        },
        quotient_backward,
        (
            Mistake(
                "complex quotient, divisor not conjugated",
                lambda g, a, b: quotient_backward(g, a, b, conjugate=False),
                named="a is conjugated in the gradient of b, and b itself is not",
                kinds=("conjugated", "another operand", "factor by element"),
                named_words=(r"conjugat",),
                located=(r"gradient of b",),
            ),
        ),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
