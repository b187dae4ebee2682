"""Normalizations: group normalization; rows of length 1 with an epsilon."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

GROUPS, EPS = 2, 1e-2


def normalized_groups(x):
    """Normalize each group of channels of each example of x (N, C, L); return it with 1/deviation."""
    groups = x.reshape(x.shape[0], GROUPS, -1)
    centered = groups - groups.mean(2, keepdim=True)
    inverse = (centered.square().mean(2, keepdim=True) + EPS).rsqrt()
    return (centered * inverse).reshape(x.shape), inverse


class GroupNorm(Function):
    """y = normalized x * weight + bias, for x (N, C, L) and weight, bias (C)."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        normalized, inverse = normalized_groups(x)
        ctx.save_for_backward(x, normalized, inverse, weight)
        return normalized * weight[:, None] + bias[:, None]

    @staticmethod
    def grad_x(g, normalized, inverse, weight):
        scaled = (g * weight[:, None]).reshape(g.shape[0], GROUPS, -1)
        normalized = normalized.reshape(scaled.shape)
        projection = (scaled * normalized).mean(2, keepdim=True)
        return (inverse * (scaled - scaled.mean(2, keepdim=True) - normalized * projection)).reshape(g.shape)

    @staticmethod
    def backward(ctx, g):
        _, normalized, inverse, weight = ctx.saved_tensors
        grad_x = GroupNorm.grad_x(g, normalized, inverse, weight)
        return grad_x, (g * normalized).sum((0, 2)), g.sum((0, 2))


class GroupNormWrong(GroupNorm):
    @staticmethod
    def backward(ctx, g):
        x, normalized, inverse, weight = ctx.saved_tensors
        grad_x = GroupNorm.grad_x(g, normalized, inverse, weight)
        return grad_x, (g * x).sum((0, 2)), g.sum((0, 2))


class UnitRows(Function):
    """y = x / sqrt(|x|² + 0.1), row by row."""

    @staticmethod
    def forward(ctx, x):
        length = (x.square().sum(1, keepdim=True) + 0.1).sqrt()
        y = x / length
        ctx.save_for_backward(x, y, length)
        return y

    @staticmethod
    def backward(ctx, g):
        _, y, length = ctx.saved_tensors
        return (g - y * (g * y).sum(1, keepdim=True)) / length


class UnitRowsWrong(UnitRows):
    @staticmethod
    def backward(ctx, g):
        x, y, _ = ctx.saved_tensors
        length = x.square().sum(1, keepdim=True).sqrt() + 0.1
        return (g - y * (g * y).sum(1, keepdim=True)) / length


OPERATIONS = [
    Operation(
        "group norm",
        GroupNorm,
        GroupNormWrong,
        lambda x, weight, bias: normalized_groups(x)[0] * weight[:, None] + bias[:, None],
        lambda: {"x": 1 + 2 * torch.randn(3, 4, 5), "weight": torch.randn(4), "bias": torch.randn(4)},
        named="the gradient of weight is computed from x instead of the normalized x",
        kinds=(),
        named_words=(
            r"(computed|with|from|of|at|uses?)\b.*\bx\b.*(instead|in place|for|not)\b.*(normali[sz]ed|output|y\b)",
            r"(sum|product) of .*\bg\b.*\bx\b",
            r"pre-?\w* (for|instead of|in place of) post",
            r"another (operand|tensor|input)",
        ),
        located=(r"gradient of weight",),
    ),
    Operation(
        "unit rows, with epsilon",
        UnitRows,
        UnitRowsWrong,
        lambda x: x / (x.square().sum(1, keepdim=True) + 0.1).sqrt(),
        lambda: {"x": torch.randn(6, 5)},
        named="divides by |x| + eps instead of sqrt(|x|² + eps): another factor in each row",
        kinds=("constant factor",),
        named_words=(r"(factor|number|times).*(each|every|per|its own) row", r"row.*(factor|times|scale)", r"eps"),
        located=(r"gradient of x", r"row"),
    ),
]
WRONG, RIGHT = wrong_and_right(OPERATIONS)
