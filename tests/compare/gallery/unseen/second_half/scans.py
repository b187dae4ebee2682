"""Scans: running mean, cumulative logsumexp."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right


class RunningMean(Function):
    """y[i, t] = mean of x[i, 0], ..., x[i, t]."""

    @staticmethod
    def counts(x):
        return torch.arange(1, x.shape[1] + 1, dtype=x.dtype)

    @staticmethod
    def forward(ctx, x):
        return x.cumsum(1) / RunningMean.counts(x)

    @staticmethod
    def backward(ctx, g):
        return (g / RunningMean.counts(g)).flip(1).cumsum(1).flip(1)


class RunningMeanWrong(RunningMean):
    @staticmethod
    def backward(ctx, g):
        return g.flip(1).cumsum(1).flip(1) / RunningMean.counts(g)


class LogCumSumExp(Function):
    """y[i, t] = log of the sum of exp(x[i, 0]), ..., exp(x[i, t])."""

    @staticmethod
    def forward(ctx, x):
        y = torch.stack([x[:, : t + 1].logsumexp(1) for t in range(x.shape[1])], 1)
        ctx.save_for_backward(x, y)
        return y

    @staticmethod
    def backward(ctx, g):
        x, y = ctx.saved_tensors
        weights = (x[:, :, None] - y[:, None]).exp().triu()  # of input j in output t
        return (weights * g[:, None]).sum(2)


class LogCumSumExpWrong(LogCumSumExp):
    @staticmethod
    def backward(ctx, g):
        x, y = ctx.saved_tensors
        return (x - y).exp() * g


OPERATIONS = [
    Operation(
        "running mean",
        RunningMean,
        RunningMeanWrong,
        lambda x: x.cumsum(1) / torch.arange(1, x.shape[1] + 1, dtype=x.dtype),
        lambda: torch.randn(3, 5),
        named="divided by the count of the input's index instead of the output's: j + 1 instead of t + 1",
        kinds=(),
        named_words=(
            r"(coefficient|factor|entr\w+|weight|number)s?\b.*(other|wrong|each|every|of) (output|column|index|step)",
            r"(output|column|index|step)s?\b.*(other|wrong) (coefficient|factor|entr\w+|weight)",
            r"divi(ded|sor|des)",
            r"count",
            r"(before|after) the (sum|scan)",
        ),
        located=(r"gradient of (x|input 0)", r"column|output|step|entr|coefficient|dimension 1|\bj\b"),
    ),
    Operation(
        "cumulative logsumexp",
        LogCumSumExp,
        LogCumSumExpWrong,
        lambda x: torch.stack([x[:, : t + 1].logsumexp(1) for t in range(x.shape[1])], 1),
        lambda: torch.randn(3, 5),
        named="the contributions of later outputs are missing: only the output at the same index counts",
        kinds=("missing term",),
        named_words=(
            r"later|following|subsequent",
            r"(only|except|other than).*(diagonal|same (index|place|column|step|element)|own)",
            r"(above|below|off) .*diagonal",
            r"(outputs|contributions|entries|coefficients|terms) .*missing",
            r"missing .*(outputs|contributions|entries|coefficients|terms)",
        ),
        located=(r"gradient of (x|input 0)", r"later|diagonal|output|last|column|following|step"),
    ),
]
WRONG, RIGHT = wrong_and_right(OPERATIONS)
