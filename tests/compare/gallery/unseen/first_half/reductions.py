"""Reductions: mean, maximum, range."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right


class MeanOfColumns(Function):
    """Mean of x (N, L, C) over dimension 1."""

    @staticmethod
    def forward(ctx, x):
        ctx.shape = x.shape
        return x.mean(1)

    @staticmethod
    def backward(ctx, g):
        return g[:, None].expand(ctx.shape) / ctx.shape[1]


class MeanOfColumnsWrong(MeanOfColumns):
    @staticmethod
    def backward(ctx, g):
        return g.flatten()[0].expand(ctx.shape) / ctx.shape[1]


class Maximum(Function):
    """Largest element of each row; equal ones share the gradient."""

    @staticmethod
    def forward(ctx, x):
        y = x.amax(1)
        ctx.save_for_backward(x, y)
        return y

    @staticmethod
    def backward(ctx, g):
        x, y = ctx.saved_tensors
        largest = (x == y[:, None]).to(g.dtype)
        return g[:, None] * largest / largest.sum(1, keepdim=True)


class MaximumWrong(Maximum):
    @staticmethod
    def backward(ctx, g):
        x, y = ctx.saved_tensors
        return g[:, None] * (x == y[:, None])


class Range(Function):
    """Largest minus smallest element of each row; the first of equal ones gets the gradient."""

    @staticmethod
    def forward(ctx, x):
        high, low = x.argmax(1, keepdim=True), x.argmin(1, keepdim=True)
        ctx.save_for_backward(high, low)
        ctx.shape = x.shape
        return (x.gather(1, high) - x.gather(1, low))[:, 0]

    @staticmethod
    def backward(ctx, g):
        high, low = ctx.saved_tensors
        g = g[:, None]
        return g.new_zeros(ctx.shape).scatter_add(1, high, g).scatter_add(1, low, -g)


class RangeWrong(Range):
    @staticmethod
    def backward(ctx, g):
        high, low = ctx.saved_tensors
        g = g[:, None]
        return g.new_zeros(ctx.shape).scatter_add(1, high, g).scatter_add(1, low, g)


OPERATIONS = [
    Operation(
        "mean over dimension 1",
        MeanOfColumns,
        MeanOfColumnsWrong,
        lambda x: x.mean(1),
        lambda: torch.randn(3, 4, 5),
        named="every element has the gradient of the first output: only g[0, 0] is used",
        kinds=("ignores the incoming gradient", "not linear in the incoming gradient"),
        named_words=(
            r"(first|one|only|single) (element|number|value|output|entry)",
            r"g\[0",
            r"output \[0",
            r"(incoming gradient|g) .*\[0",
        ),
        located=(r"gradient of (x|input 0)",),
    ),
    Operation(
        "maximum of each row",
        Maximum,
        MaximumWrong,
        lambda x: x.amax(1),
        lambda: torch.randn(6, 5),
        named="where the largest element occurs several times, each gets all of g instead of its share",
        kinds=("only at ties",),
        named_words=(r"\bties?\b|\btied\b", r"equal", r"(occur|repeat|more than once|several)"),
        located=(r"gradient of (x|input 0)", r"\bties?\b|\btied\b|equal|largest|maxim"),
    ),
    Operation(
        "range of each row",
        Range,
        RangeWrong,
        lambda x: x.max(1).values - x.min(1).values,
        lambda: torch.randn(5, 4),
        named="the smallest element of each row has the wrong sign",
        kinds=(),
        named_words=(r"\bsign\b", r"negated|opposite|negative of", r"(-|−|minus )(1\b|one\b)"),
        located=(r"gradient of (x|input 0)", r"expected.*(<|negative)|smallest|minim|one .*(each|every) row|min"),
    ),
]
WRONG, RIGHT = wrong_and_right(OPERATIONS)
