"""Losses of representations: correlations of two views, spread of each feature."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

OFF_DIAGONAL = 0.2
EPS = 1e-2


def redundancy(a, b):
    correlation = a.T @ b / len(a)
    diagonal = torch.eye(a.shape[1], dtype=torch.bool)
    weighted = torch.where(diagonal, (1 - correlation) ** 2, OFF_DIAGONAL * correlation**2)
    return weighted.sum()


class RedundancyFunction(Function):
    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return redundancy(a, b)

    @staticmethod
    def backward(ctx, g):
        a, b = ctx.saved_tensors
        correlation = a.T @ b / len(a)
        diagonal = torch.eye(a.shape[1], dtype=torch.bool)
        to_sum = g * torch.where(diagonal, 2 * (correlation - 1), 2 * OFF_DIAGONAL * correlation) / len(a)
        return b @ to_sum.T, a @ to_sum


class BarlowTwins(Function):
    @staticmethod
    def forward(ctx, za, zb):
        c = za.t() @ zb / za.size(0)
        on_diag = (c.diagonal() - 1).square().sum()
        off_diag = c.fill_diagonal_(0).square().sum()
        ctx.save_for_backward(za, zb, c)
        return on_diag + OFF_DIAGONAL * off_diag

    @staticmethod
    def backward(ctx, grad):
        za, zb, c = ctx.saved_tensors
        grad_c = 2 * OFF_DIAGONAL * c
        grad_c.diagonal().copy_(2 * (c.diagonal() - 1))
        grad_c = grad * grad_c / za.size(0)
        return zb @ grad_c.t(), za @ grad_c


def lack_of_spread(x):
    centred = x - x.mean(0)
    return torch.relu(1 - torch.sqrt((centred**2).sum(0) / (len(x) - 1) + EPS)).mean()


class VarianceHinge(Function):
    @staticmethod
    def forward(ctx, z):
        std = torch.sqrt(z.var(dim=0) + EPS)
        ctx.save_for_backward(z, std)
        return torch.relu(1 - std).mean()

    @staticmethod
    def backward(ctx, grad):
        z, std = ctx.saved_tensors
        n, d = z.shape
        return -grad * (z - z.mean(dim=0)) / ((n - 1) * d * std)


OPERATIONS = [
    Operation(
        "redundancy of two views, diagonal",
        RedundancyFunction,
        BarlowTwins,
        redundancy,
        lambda: {"a": torch.randn(6, 4), "b": torch.randn(6, 4)},
        named="forward sets the diagonal to 0 before it saves the correlations, so backward reads 0 on the diagonal",
        kinds=("another operand", "missing term", "step left out"),
        named_words=(r"diagonal", r"missing", r"in.?place|overwrit|modif"),
        located=(r"gradient of a", r"gradient of b"),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "lack of spread, hinge",
            VarianceHinge.apply,
            lack_of_spread,
            lambda: (torch.randn(6, 4) * torch.tensor([0.4, 3.0, 0.4, 3.0]),),
        ),
        named="columns whose spread is above 1 get a gradient, though the hinge is 0 there: the mask is left out",
        kinds=("only for some values", "only at some indices", "step left out"),
        named_words=(r"relu|mask|hinge|clamp|where", r"too many|no gradient|must be 0|> ?1", r"column|index|indices"),
        located=(r"gradient of (x|input 0)",),
    ),
]
