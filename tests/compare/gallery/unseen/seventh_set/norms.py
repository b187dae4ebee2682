"""Norms: responses of neighbouring channels, rows between 0 and 1."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas

SIZE, ALPHA, BETA, K = 3, 0.9, 0.75, 1.0


def local_response(x):
    return F.local_response_norm(x, SIZE, ALPHA, BETA, K)


def channel_sum(x):
    """Sum over each channel, the one before and the one after."""
    return F.pad(x, (0, 0, 1, 1)).unfold(1, SIZE, 1).sum(3)


def local_response_backward(g, x, *, neighbours=True, offset=K):
    mean = ALPHA / SIZE * channel_sum(x * x)
    through_divisor = g * x * (mean + offset) ** (-BETA - 1)
    through_divisor = channel_sum(through_divisor) if neighbours else through_divisor
    return g * (mean + K) ** -BETA - 2 * BETA * ALPHA / SIZE * x * through_divisor


def extremes(x):
    return x.min(1, keepdim=True), x.max(1, keepdim=True)


def rescale(x):
    low, high = extremes(x)
    return (x - low.values) / (high.values - low.values)


def rescale_backward(g, x, *, range_of_minimum=True):
    low, high = extremes(x)
    share = g / (high.values - low.values)
    along = (share * rescale(x)).sum(1, keepdim=True)
    grad_low = (along if range_of_minimum else 0) - share.sum(1, keepdim=True)
    return share.scatter_add(1, low.indices, grad_low).scatter_add(1, high.indices, -along)


OPERATIONS = [
    Formulas(
        "local response norm",
        local_response,
        lambda: {"x": torch.randn(2, 6, 4)},
        local_response_backward,
        (
            Mistake(
                "local response norm, neighbours in backward",
                lambda g, x: local_response_backward(g, x, neighbours=False),
                named="the effect of a channel on the divisors of its neighbours is missing",
                kinds=("missing term",),
                named_words=(r"missing", r"no effect", r"neighbo", r"other channels"),
                located=(r"gradient of x",),
            ),
            Mistake(
                "local response norm, constant of the divisor",
                lambda g, x: local_response_backward(g, x, offset=0),
                named="the constant k = 1 of the divisor is missing in the derivative of the power",
                kinds=("step left out", "another operand", "factor of one term"),
                named_words=(r"\badd\b", r"\bpow", r"\+ ?1\b"),
                located=(r"gradient of x", r"add|pow|div"),
            ),
        ),
        options={"whole_numbers": False},
    ),
    Formulas(
        "rows between 0 and 1",
        rescale,
        lambda: {"x": torch.randn(4, 6)},
        rescale_backward,
        (
            Mistake(
                "rows between 0 and 1, minimum in the range",
                lambda g, x: rescale_backward(g, x, range_of_minimum=False),
                named="the minimum is treated as a constant in the range max - min",
                kinds=("missing term", "only for some values"),
                named_words=(r"missing", r"constant", r"output (is|=|==|<=?) ?0", r"minimum|\bmin\b"),
                located=(r"gradient of x",),
            ),
        ),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
