"""Norms: rows of a weight with a learned length, rows divided by the sum of their absolute values."""

from __future__ import annotations

import torch

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas


def weight_norm(v, length):
    return length[:, None] * v / v.norm(dim=1, keepdim=True)


def weight_norm_backward(g, v, length, *, projected=True, divided=True):
    norm = v.norm(dim=1, keepdim=True)
    unit = v / norm
    along = (g * unit).sum(1, keepdim=True)
    grad_v = length[:, None] / norm * (g - along * unit if projected else g)
    return grad_v, (along if divided else along * norm).squeeze(1)


def absolute_norm(x):
    return x / x.abs().sum(1, keepdim=True)


def absolute_norm_backward(g, x, *, sign=True, dim=1):
    total = x.abs().sum(1, keepdim=True)
    inner = (g * x / total).sum(dim, keepdim=True)
    return (g - inner * (x.sign() if sign else 1)) / total


OPERATIONS = [
    Formulas(
        "weight norm",
        weight_norm,
        lambda: {"v": torch.randn(4, 3), "length": 1 + torch.rand(4)},
        weight_norm_backward,
        (
            Mistake(
                "weight norm, not projected",
                lambda g, v, length: weight_norm_backward(g, v, length, projected=False),
                named="the derivative of the norm is missing in the gradient of v",
                kinds=("missing term",),
                named_words=(
                    r"norm.*(missing|constant|detached)",
                    r"(missing|constant|detached).*norm",
                    r"missing term.*\bv\b",
                ),
                located=(r"gradient of v", r"norm|\bv\b.*row"),
            ),
            Mistake(
                "weight norm, not divided",
                lambda g, v, length: weight_norm_backward(g, v, length, divided=False),
                named="the gradient of length is not divided by the norm of v",
                kinds=("missing term", "factor by element"),
                named_words=(r"norm", r"div"),
                located=(r"gradient of length",),
            ),
        ),
    ),
    Formulas(
        "rows of absolute sum 1",
        absolute_norm,
        lambda: torch.randn(4, 5),
        absolute_norm_backward,
        (
            Mistake(
                "rows of absolute sum 1, no sign",
                lambda g, x: absolute_norm_backward(g, x, sign=False),
                named="the derivative of abs, the sign, is missing in the second term",
                kinds=("missing term", "step left out"),
                named_words=(
                    r"\babs\b.*(left out|missing|unchanged|without)",
                    r"(left out|missing|without).*(abs|sign)",
                ),
                located=(r"gradient of (x|input 0)", r"abs|sign"),
            ),
            Mistake(
                "rows of absolute sum 1, sum over rows",
                lambda g, x: absolute_norm_backward(g, x, dim=0),
                named="the inner product is summed over rows instead of columns",
                kinds=("wrong sum",),
                named_words=(
                    r"sums? over (its )?(the )?(rows|dimension 0)",
                    r"\b0 instead of 1",
                    r"over (its )?rows",
                ),
                located=(r"gradient of (x|input 0)", r"rows|dimension|columns|dim"),
            ),
        ),
    ),
]
WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
