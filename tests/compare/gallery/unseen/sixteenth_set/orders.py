"""Orders: means with bounded extremes, ranks that are smooth."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

CUT = 2
TEMPERATURE = 0.7


def bounded_mean(x):
    ordered = x.sort(1).values
    inner = ordered[:, CUT : x.shape[1] - CUT]
    return (inner.sum(1) + CUT * (inner[:, 0] + inner[:, -1])) / x.shape[1]


class BoundedMeanFunction(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return bounded_mean(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        n = x.shape[1]
        counts = x.new_zeros(n)
        counts[CUT : n - CUT] = 1
        counts[CUT] += CUT
        counts[n - CUT - 1] += CUT
        return torch.zeros_like(x).scatter(1, x.argsort(1), g[:, None] * counts / n)


class WinsorizedMean(Function):
    @staticmethod
    def forward(ctx, x):
        ordered, _ = torch.sort(x, dim=-1)
        lower, upper = ordered[:, CUT, None], ordered[:, -CUT - 1, None]
        ctx.save_for_backward(x, lower, upper)
        return torch.clamp(x, lower, upper).mean(dim=-1)

    @staticmethod
    def backward(ctx, grad_mean):
        x, lower, upper = ctx.saved_tensors
        inside = (x >= lower) & (x <= upper)
        return grad_mean.unsqueeze(-1) * inside / x.size(-1)


def smooth_ranks(scores):
    differences = scores[:, :, None] - scores[:, None]
    return 0.5 + torch.sigmoid(differences / TEMPERATURE).sum(2)


class SoftRank(Function):
    @staticmethod
    def forward(ctx, s):
        pairwise = torch.sigmoid((s.unsqueeze(-1) - s.unsqueeze(-2)) / TEMPERATURE)
        ctx.save_for_backward(pairwise)
        return 0.5 + pairwise.sum(dim=-1)

    @staticmethod
    def backward(ctx, grad_rank):
        (pairwise,) = ctx.saved_tensors
        slope = pairwise * (1 - pairwise) / TEMPERATURE
        slope = slope - torch.diag_embed(torch.diagonal(slope, dim1=-2, dim2=-1))
        return grad_rank * slope.sum(dim=-1)


OPERATIONS = [
    Operation(
        "mean with bounded extremes, share of the bounds",
        BoundedMeanFunction,
        WinsorizedMean,
        bounded_mean,
        lambda: {"x": torch.randn(4, 9)},
        named="the gradients of the extremes, which have the value of a bound, are lost: they belong to the bound",
        kinds=("missing term", "only at some indices", "few elements", "only for some values", "wrong sum"),
        named_words=(r"missing", r"bound|lower|upper", r"CUT"),
        located=(r"gradient of x",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "smooth ranks, others' ranks",
            SoftRank.apply,
            smooth_ranks,
            lambda: {"scores": torch.randn(3, 5)},
        ),
        named="a score changes the ranks of the others too: that part of the gradient is missing",
        kinds=("missing term", "another operand", "wrong sum"),
        named_words=(r"missing", r"second (use|operand)|other", r"dimension|over (rows|columns)"),
        located=(r"gradient of (scores|s)\b",),
    ),
]
