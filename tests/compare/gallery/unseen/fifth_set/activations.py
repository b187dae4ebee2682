"""Activations and gates: Mish, the gated linear unit, maxout."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas


def mish(x):
    return x * torch.tanh(F.softplus(x))


def mish_backward(g, x, *, chained=True):
    t = torch.tanh(F.softplus(x))
    inner = x * (1 - t * t)
    return g * (t + (inner * x.sigmoid() if chained else inner))


def mish_in_place(g, x):
    t = torch.tanh(F.softplus(x))
    return g.mul_(t + x * (1 - t * t) * x.sigmoid())


def glu(x):
    return F.glu(x, 1)


def glu_backward(g, x, *, exchanged=False, before=False):
    value, gate = x.chunk(2, 1)
    s = gate.sigmoid()
    slope = gate * (1 - gate) if before else s * (1 - s)
    halves = [g * s, g * value * slope]
    return torch.cat(halves[::-1] if exchanged else halves, 1)


def maxout(x):
    return x.max(1).values


def maxout_backward(g, x, *, every_tie=False):
    largest = x.max(1, keepdim=True)
    if every_tie:
        return g[:, None] * (x == largest.values)
    return torch.zeros_like(x).scatter(1, largest.indices, g[:, None])


OPERATIONS = [
    Formulas(
        "Mish",
        mish,
        lambda: {"x": torch.randn(5, 6)},
        mish_backward,
        (
            Mistake(
                "Mish, derivative of softplus",
                lambda g, x: mish_backward(g, x, chained=False),
                named="the derivative of softplus, a sigmoid, is missing in the chain rule",
                kinds=("step left out", "another operand", "factor by element"),
                named_words=(r"softplus", r"sigmoid"),
                located=(r"gradient of x",),
            ),
            Mistake(
                "Mish, product in place",
                mish_in_place,
                named="the incoming gradient is multiplied in place",
                kinds=("changes the incoming gradient", "only in one layout", "raises"),
                named_words=(r"in.?place", r"modif", r"changes"),
                located=(r"incoming gradient|backward",),
            ),
        ),
    ),
    Formulas(
        "gated linear unit",
        glu,
        lambda: {"x": torch.randn(4, 10)},
        glu_backward,
        (
            Mistake(
                "gated linear unit, halves exchanged",
                lambda g, x: glu_backward(g, x, exchanged=True),
                named="the gradients of the value and of the gate are exchanged: columns shifted by 5",
                kinds=("permuted", "shifted", "swapped"),
                named_words=(r"permut", r"shift", r"exchang", r"swap", r"other order|other places"),
                located=(r"gradient of x", r"\b5\b|halves|half|column"),
            ),
            Mistake(
                "gated linear unit, gate before the sigmoid",
                lambda g, x: glu_backward(g, x, before=True),
                named="the derivative of the sigmoid is computed from its argument instead of its result",
                kinds=("another operand", "factor by element", "only at some indices"),
                named_words=(r"argument|input of|instead of the (result|output)", r"sigmoid", r"factor of its own"),
                located=(r"gradient of x", r"column|\[\d, [5-9]|last 5|half|>= ?5|from 5|dimension 1|sigmoid"),
            ),
        ),
    ),
    Formulas(
        "maxout",
        maxout,
        lambda: {"x": torch.randn(5, 3, 4)},
        maxout_backward,
        (
            Mistake(
                "maxout, every tie",
                lambda g, x: maxout_backward(g, x, every_tie=True),
                named="all elements equal to the maximum get the whole gradient",
                kinds=("only at ties",),
                named_words=(r"\btie", r"equal"),
                located=(r"gradient of x",),
            ),
        ),
    ),
]

WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
