"""Matrices: rows and columns normalized in turn (Sinkhorn), polynomials."""

from __future__ import annotations

import torch

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas

DIMS = (1, 0, 1, 0, 1)  # rows, columns, ...


def sinkhorn(x):
    for dim in DIMS:
        x = x - x.logsumexp(dim, keepdim=True)
    return x


def sinkhorn_backward(g, x, *, skipped=0, sum_dims=DIMS):
    results = []
    for dim in DIMS:
        x = x - x.logsumexp(dim, keepdim=True)
        results.append(x)
    for log_p, dim, sum_dim in list(zip(results, DIMS, sum_dims, strict=True))[skipped:][::-1]:
        g = g - log_p.exp() * (g.sum(dim, keepdim=True) if dim == sum_dim else g.sum(sum_dim, keepdim=True))
    return g


def polynomial(coefficients, x):
    y = torch.zeros_like(x)
    for c in coefficients.flip(0):
        y = y * x + c
    return y


def polynomial_backward(g, coefficients, x, *, exponents=True, first=0):
    slope, power = torch.zeros_like(x), torch.ones_like(x)
    for k in range(1, len(coefficients)):
        slope = slope + (k if exponents else 1) * coefficients[k] * power
        power = power * x
    grads = [(g * x ** (k + first)).sum() for k in range(len(coefficients))]
    return torch.stack(grads), g * slope


OPERATIONS = [
    Formulas(
        "rows and columns normalized in turn",
        sinkhorn,
        lambda: {"x": 2 * torch.randn(4, 6)},
        sinkhorn_backward,
        (
            Mistake(
                "rows and columns normalized in turn, last step only",
                lambda g, x: sinkhorn_backward(g, x, skipped=4),
                named="backward goes through the last of five normalizations only",
                kinds=("missing term", "step left out"),
                named_words=(r"missing", r"left out", r"constant", r"logsumexp"),
                located=(r"gradient of x",),
            ),
            Mistake(
                "rows and columns normalized in turn, dimension of the columns",
                lambda g, x: sinkhorn_backward(g, x, sum_dims=(1,) * len(DIMS)),
                named="backward sums over each row also in the normalizations of columns",
                kinds=("wrong sum", "another operand", "summed over the batch"),
                named_words=(r"dim(ension)?s? ?[01]\b", r"\brows?\b|\bcolumns?\b", r"\bsum"),
                located=(r"gradient of x",),
            ),
        ),
    ),
    Formulas(
        "polynomial",
        polynomial,
        lambda: {"coefficients": torch.randn(4), "x": torch.randn(3, 5)},
        polynomial_backward,
        (
            Mistake(
                "polynomial, exponents",
                lambda g, coefficients, x: polynomial_backward(g, coefficients, x, exponents=False),
                named="the derivative of x^k is x^(k - 1), without the factor k",
                kinds=("factor of one term", "missing term", "another operand", "factor by element"),
                named_words=(r"\b(1/2|0\.5|1/3|0\.33)", r"missing", r"another derivative", r"factor of its own"),
                located=(r"gradient of x",),
            ),
            Mistake(
                "polynomial, powers of the coefficients",
                lambda g, coefficients, x: polynomial_backward(g, coefficients, x, first=1),
                named="the gradient of the coefficient k has x^(k + 1) instead of x^k: off by one",
                kinds=("shifted", "another operand", "factor by element"),
                named_words=(r"shift", r"off by one", r"\bx\b", r"index", r"another derivative", r"\bmul\b"),
                located=(r"gradient of coefficients",),
            ),
        ),
    ),
]

WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
