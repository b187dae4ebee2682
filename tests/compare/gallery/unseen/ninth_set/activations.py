"""Activations: both signs of ReLU, hard sigmoid, a threshold, SELU."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas

THRESHOLD = 0.75
SCALE, ALPHA = 1.0507009873554805, 1.6732632423543772  # of SELU


def both_signs(x):
    return torch.cat([F.relu(x), F.relu(-x)], 1)


def both_signs_backward(g, x, *, sign=-1):
    positive, negative = g.chunk(2, 1)
    return positive * (x > 0) + sign * negative * (x < 0)


def hard_sigmoid(x):
    return F.relu6(x + 3) / 6


def hard_sigmoid_backward(g, x, *, slope=1 / 6):
    return g * slope * (x.abs() < 3)


def above_threshold(x):
    return F.threshold(x, THRESHOLD, 0)


def selu(x):
    return F.selu(x)


def selu_backward(g, x, *, scale=SCALE):
    return g * torch.where(x > 0, SCALE, scale * ALPHA * x.exp())


OPERATIONS = [
    Formulas(
        "both signs of ReLU",
        both_signs,
        lambda: {"x": torch.randn(3, 5)},
        both_signs_backward,
        (
            Mistake(
                "both signs of ReLU, sign of the second half",
                lambda g, x: both_signs_backward(g, x, sign=1),
                named="the part through relu(-x) lacks the sign of -x: wrong where x < 0",
                kinds=("factor of one term", "only for some values", "constant factor", "step left out"),
                named_words=(
                    r"\bsign\b",
                    r"[-−]1\b",
                    r"\bneg",
                    r"(x|input)\S* ?(is |are )?(<=?|negative|below|less)",
                ),
                located=(r"gradient of x", r"<|negative|below|less|\bneg|second|relu"),
            ),
        ),
    ),
    Formulas(
        "hard sigmoid",
        hard_sigmoid,
        lambda: {"x": 3 * torch.randn(4, 7)},
        hard_sigmoid_backward,
        (
            Mistake(
                "hard sigmoid, slope of another definition",
                lambda g, x: hard_sigmoid_backward(g, x, slope=0.2),
                named="the slope is 1/5, that of another library's hard sigmoid, instead of 1/6",
                kinds=("constant factor",),
                named_words=(r"\b1\.2\b", r"6/5"),
                located=(r"gradient of x",),
            ),
        ),
    ),
    Formulas(
        "values above a threshold",
        above_threshold,
        lambda: {"x": torch.randn(5, 6)},
        lambda g, x: g * (x > THRESHOLD),
        (
            Mistake(
                "values above a threshold, mask at 0",
                lambda g, x: g * (x > 0),
                named="the mask is x > 0 instead of x > 0.75: elements between 0 and 0.75 get the incoming gradient",
                kinds=("only for some values", "step left out", "another operand"),
                named_words=(
                    r"\bx\b.*(0\.75|<|>|between)",
                    r"\b0\.75\b",
                    r"threshold",
                    r"mask",
                    r"(output|result|\by)\S* ?(is|=|==) ?0",
                    r"expected.*\b0\b",
                ),
                located=(r"gradient of x",),
            ),
        ),
    ),
    Formulas(
        "SELU",
        selu,
        lambda: {"x": torch.randn(4, 6)},
        selu_backward,
        (
            Mistake(
                "SELU, scale of the negative half",
                lambda g, x: selu_backward(g, x, scale=1),
                named="for x < 0 the scale 1.0507 is missing: 0.9517 times the expected gradient",
                kinds=("only for some values", "factor of one term", "factor by element"),
                named_words=(
                    r"(x|input|output|result|\by)\S* ?(is |are )?(<=?|negative|below|less)",
                    r"\b0\.95",
                    r"\b1\.05",
                ),
                located=(r"gradient of x", r"<|negative|below|less"),
            ),
        ),
    ),
]

WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
