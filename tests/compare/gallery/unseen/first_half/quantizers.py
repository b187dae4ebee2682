"""Quantizers: a smooth staircase, straight-through rounding."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

BETA = 3.0
STEPS = (-1.0, 0.0, 1.0)
LOW, HIGH = -1.0, 2.0


class Staircase(Function):
    """Sum over the steps s of tanh(beta (x - s))."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return sum((BETA * (x - step)).tanh() for step in STEPS)

    @staticmethod
    def slopes(ctx):
        (x,) = ctx.saved_tensors
        return sum(1 - (BETA * (x - step)).tanh() ** 2 for step in STEPS)

    @staticmethod
    def backward(ctx, g):
        return BETA * g * Staircase.slopes(ctx)


class StaircaseWrong(Staircase):
    @staticmethod
    def backward(ctx, g):
        return g * Staircase.slopes(ctx)


class Rounding(Function):
    """Round x after a clamp; the gradient passes straight through the rounding."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(LOW, HIGH).round()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * ((x >= LOW) & (x <= HIGH))


class RoundingWrong(Rounding):
    @staticmethod
    def backward(ctx, g):
        return g.clone()


def straight_through(x):
    """Rounding, differentiated as the clamp alone, with derivative 1 at the bounds in every version of PyTorch."""
    clamped = torch.where((x >= LOW) & (x <= HIGH), x, x.detach().clamp(LOW, HIGH))
    return clamped + (clamped.round() - clamped).detach()


OPERATIONS = [
    Operation(
        "smooth staircase",
        Staircase,
        StaircaseWrong,
        lambda x: sum((BETA * (x - step)).tanh() for step in STEPS),
        lambda: torch.randn(4, 5),
        named="the inner derivative beta = 3 is missing",
        kinds=("constant factor",),
        named_words=(r"1/3|0\.3333", r"factor.* 3\b", r"divided by 3"),
        located=(r"gradient of (x|input 0)",),
    ),
    Operation(
        "rounding with bounds",
        Rounding,
        RoundingWrong,
        straight_through,
        lambda: 2 * torch.randn(5, 6),
        named="the incoming gradient passes where the clamp is active: below -1 and above 2 it must be 0",
        kinds=("passes the incoming gradient through",),
        named_words=(
            r"(outside|beyond|below|above|clamp|bound|saturat|mask)",
            r"x ?(<|≤|>|≥|<=|>=) ?(-|−)?\d",
            r"incoming gradient .*(through|unchanged|returned)",
            r"(expected|should be|must be) (is )?(0|zero)",
            r"output (=|is) (-1|−1|2)",
        ),
        located=(r"gradient of (x|input 0)", r"< ?=?|>|≤|≥|below|above|outside|beyond|bound|output|where"),
    ),
]
WRONG, RIGHT = wrong_and_right(OPERATIONS)
