"""Normalizations: RMS normalization of rows, batch normalization."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

EPS = 1e-2


class RMSNorm(Function):
    """y = x / rms(x) * weight for x (N, D) and weight (D)."""

    @staticmethod
    def forward(ctx, x, weight):
        inverse = (x.square().mean(1, keepdim=True) + EPS).rsqrt()
        normalized = x * inverse
        ctx.save_for_backward(normalized, inverse, weight)
        return normalized * weight

    @staticmethod
    def backward(ctx, g):
        normalized, inverse, weight = ctx.saved_tensors
        scaled = g * weight
        grad = inverse * (scaled - normalized * (scaled * normalized).mean(1, keepdim=True))
        return grad, (g * normalized).sum(0)


class RMSNormWrong(RMSNorm):
    @staticmethod
    def backward(ctx, g):
        normalized, inverse, weight = ctx.saved_tensors
        scaled = g * weight
        grad = inverse * (scaled - normalized * (scaled * normalized).sum(1, keepdim=True))
        return grad, (g * normalized).sum(0)


class BatchNorm(Function):
    """Normalize each channel of x (N, C, L) over the batch and L; multiply by weight (C)."""

    @staticmethod
    def forward(ctx, x, weight):
        centered = x - x.mean((0, 2), keepdim=True)
        inverse = (centered.square().mean((0, 2), keepdim=True) + EPS).rsqrt()
        normalized = centered * inverse
        ctx.save_for_backward(normalized, inverse, weight)
        return normalized * weight[:, None]

    @staticmethod
    def grads(ctx, g, dims):
        normalized, inverse, weight = ctx.saved_tensors
        scaled = g * weight[:, None]
        projection = normalized * (scaled * normalized).mean(dims, keepdim=True)
        grad = inverse * (scaled - scaled.mean(dims, keepdim=True) - projection)
        return grad, (g * normalized).sum((0, 2))

    @staticmethod
    def backward(ctx, g):
        return BatchNorm.grads(ctx, g, (0, 2))


class BatchNormWrong(BatchNorm):
    @staticmethod
    def backward(ctx, g):
        return BatchNorm.grads(ctx, g, (2,))


def batch_norm(x, weight):
    """Batch normalization of operations that PyTorch differentiates."""
    centered = x - x.mean((0, 2), keepdim=True)
    return centered * (centered.square().mean((0, 2), keepdim=True) + EPS).rsqrt() * weight[:, None]


OPERATIONS = [
    Operation(
        "RMS norm",
        RMSNorm,
        RMSNormWrong,
        lambda x, weight: x * (x.square().mean(1, keepdim=True) + EPS).rsqrt() * weight,
        lambda: {"x": torch.randn(4, 6), "weight": torch.randn(6)},
        named="the term with the output is a sum instead of a mean: 6 times too large",
        kinds=("missing term",),
        named_words=(
            r"(surplus|too many|too much|too large|additional|extra|missing|wrong) (term|part)",
            r"(term|part)\b.*(surplus|too many|too much|too large|additional|extra|missing|times|factor)",
            r"sum .*(instead|in place|for).*mean",
            r"mean .*(instead|in place|not).*sum",
        ),
        located=(r"gradient of x",),
    ),
    Operation(
        "batch norm",
        BatchNorm,
        BatchNormWrong,
        batch_norm,
        lambda: {"x": 1 + torch.randn(3, 4, 5), "weight": torch.randn(4)},
        named="the means in backward are over dimension 2 only: they lack the contributions of other examples",
        kinds=("missing term",),
        named_words=(
            r"(other|another|between|across|different) examples?",
            r"(over|along) dimension.* (0|2)",
            r"(sum|mean)\w* over",
            r"batch",
            r"dimension 0",
        ),
        located=(r"gradient of x",),
    ),
]
WRONG, RIGHT = wrong_and_right(OPERATIONS)
