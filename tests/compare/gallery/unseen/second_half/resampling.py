"""Resampling: repetition of columns, reflected borders, rotation of columns."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

PADDING, SHIFT = 2, 2


class Repeat(Function):
    """Each column of x (N, C, L) twice: (N, C, 2 L)."""

    @staticmethod
    def forward(ctx, x):
        return x.repeat_interleave(2, dim=2)

    @staticmethod
    def backward(ctx, g):
        return g.unflatten(2, (-1, 2)).sum(3)


class RepeatWrong(Repeat):
    @staticmethod
    def backward(ctx, g):
        return g.unflatten(2, (-1, 2)).mean(3)


class ReflectionPad(Function):
    """x (N, L) with two columns on each side that reflect its columns 1, 2 and L-3, L-2."""

    @staticmethod
    def forward(ctx, x):
        left, right = x[:, 1 : PADDING + 1], x[:, -PADDING - 1 : -1]
        return torch.cat([left.flip(1), x, right.flip(1)], 1)

    @staticmethod
    def backward(ctx, g):
        grad = g[:, PADDING:-PADDING].clone()
        grad[:, 1 : PADDING + 1] += g[:, :PADDING].flip(1)
        grad[:, -PADDING - 1 : -1] += g[:, -PADDING:].flip(1)
        return grad


class ReflectionPadWrong(ReflectionPad):
    @staticmethod
    def backward(ctx, g):
        return g[:, PADDING:-PADDING].clone()


class Roll(Function):
    """Columns of x moved by two places to the right, the last ones to the front."""

    @staticmethod
    def forward(ctx, x):
        return x.roll(SHIFT, 1)

    @staticmethod
    def backward(ctx, g):
        return g.roll(-SHIFT, 1)


class RollWrong(Roll):
    @staticmethod
    def backward(ctx, g):
        return g.roll(SHIFT, 1)


OPERATIONS = [
    Operation(
        "columns twice",
        Repeat,
        RepeatWrong,
        lambda x: x.repeat_interleave(2, dim=2),
        lambda: torch.randn(3, 4, 5),
        named="the mean instead of the sum of the two copies: half of the expected gradient",
        kinds=("constant factor",),
        named_words=(
            r"\b(1/2|0\.5|half)\b",
            r"factor (of )?2\b",
            r"divided by 2",
            r"mean .*(instead|in place|for|not).*sum",
        ),
        located=(r"gradient of (x|input 0)",),
    ),
    Operation(
        "reflected borders",
        ReflectionPad,
        ReflectionPadWrong,
        lambda x: torch.nn.functional.pad(x[None], (PADDING, PADDING), mode="reflect")[0],
        lambda: torch.randn(3, 7),
        named="the contributions of the reflected columns are missing in columns 1, 2, 4 and 5",
        kinds=("missing term", "only at borders", "few elements"),
        named_words=(
            r"(missing|lacks|ignored|without|not added) .*(term|output|contribution|entr|coefficient|column)",
            r"(output|contribution|entr|coefficient|column|term)s?\b.*(missing|lack|ignored|not added)",
            r"border|padd|reflect",
        ),
        located=(r"gradient of (x|input 0)", r"columns?\b|dimension 1|\bj\b|output"),
    ),
    Operation(
        "rotated columns",
        Roll,
        RollWrong,
        lambda x: torch.cat([x[:, -SHIFT:], x[:, :-SHIFT]], 1),
        lambda: torch.randn(4, 7),
        named="rolled by 2 in the direction of forward instead of back",
        kinds=("shifted", "permuted"),
        named_words=(
            r"shift|roll",
            r"permut",
            r"transpos",
            r"forward .*(again|applied|instead|in place)",
            r"column .*(instead|in place|of column)",
        ),
        located=(r"gradient of (x|input 0)", r"column|dimension 1|dim 1|by (-|−)?[34]|\bj\b|index"),
    ),
]
WRONG, RIGHT = wrong_and_right(OPERATIONS)
