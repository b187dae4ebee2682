"""Activations of rows: log-sigmoid, log-softmax, sparsemax."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas


def log_softmax(x):
    return x.log_softmax(1)


def log_softmax_backward(g, x, *, dim=1):
    return g - x.softmax(1) * g.sum(dim, keepdim=True)


def softmax_backward(g, x):
    p = x.softmax(1)
    return p * (g - (g * p).sum(1, keepdim=True))


def sparsemax(x):
    """Projection of each row onto the probability simplex."""
    ordered = x.sort(1, descending=True).values
    total = ordered.cumsum(1)
    size = (1 + torch.arange(1, x.shape[1] + 1) * ordered > total).sum(1, keepdim=True)
    return (x - (total.gather(1, size - 1) - 1) / size).clamp(min=0)


def sparsemax_backward(g, x, *, size=None, masked=True):
    support = sparsemax(x) > 0
    size = support.sum(1, keepdim=True) if size is None else size
    grad = g - (g * support).sum(1, keepdim=True) / size
    return grad * support if masked else grad


OPERATIONS = [
    Formulas(
        "log-sigmoid",
        F.logsigmoid,
        lambda: {"x": torch.randn(5, 6)},
        lambda g, x: g * (-x).sigmoid(),
        (
            Mistake(
                "log-sigmoid, sign of the argument",
                lambda g, x: g * x.sigmoid(),
                named="the derivative is sigmoid(x) instead of sigmoid(-x)",
                kinds=("another operand", "factor by element", "step left out"),
                named_words=(r"sigmoid", r"neg", r"-x", r"factor of its own", r"another derivative"),
                located=(r"gradient of x",),
            ),
        ),
    ),
    Formulas(
        "log-softmax",
        log_softmax,
        lambda: {"x": torch.randn(4, 6)},
        log_softmax_backward,
        (
            Mistake(
                "log-softmax, formula of softmax",
                softmax_backward,
                named="backward is that of softmax: the logarithm is left out",
                kinds=("step left out", "another operand"),
                named_words=(
                    r"\blog\b.*left out",
                    r"derivative of (the )?softmax",
                    r"\bsoftmax (instead|in place)",
                    r"instead of (the )?log.?softmax",
                ),
                located=(r"gradient of x",),
            ),
            Mistake(
                "log-softmax, sum over rows",
                lambda g, x: log_softmax_backward(g, x, dim=0),
                named="the sum of the incoming gradient is over the rows instead of the columns",
                kinds=("wrong sum",),
                named_words=(
                    r"(sum|softmax).*dimension 0",
                    r"over the (rows|batch)",
                    r"between (rows|examples)|other (rows|examples)",
                ),
                located=(r"gradient of x",),
            ),
        ),
    ),
    Formulas(
        "sparsemax",
        sparsemax,
        lambda: {"x": torch.randn(4, 6)},
        sparsemax_backward,
        (
            Mistake(
                "sparsemax, mean over all columns",
                lambda g, x: sparsemax_backward(g, x, size=x.shape[1]),
                named="the sum is divided by 6, the number of columns, instead of the support's size",
                kinds=("another operand", "wrong sum", "factor of one term"),
                named_words=(r"\b6\b", r"support", r"\bmean\b", r"each (row|slice|example)", r"\bdiv\b"),
                located=(r"gradient of x",),
            ),
            Mistake(
                "sparsemax, outside of the support",
                lambda g, x: sparsemax_backward(g, x, masked=False),
                named="the gradient is not masked: nonzero where the output is 0",
                kinds=("only for some values", "step left out"),
                named_words=(r"output (is|=|==|<=?) ?-?0", r"clamp", r"mask", r"support"),
                located=(r"gradient of x", r"output|clamp|mask|support"),
            ),
        ),
        options={"whole_numbers": False, "kinks": True},
    ),
]

WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
