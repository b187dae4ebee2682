"""Quantizers: scaling of quantized numbers, a clamp with a learned bound."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right


class Dequantize(Function):
    """scale * (q - zero) for q (N, C, L), scale and zero (C)."""

    @staticmethod
    def forward(ctx, q, scale, zero):
        difference = q - zero[:, None]
        ctx.save_for_backward(difference, scale)
        return scale[:, None] * difference

    @staticmethod
    def backward(ctx, g):
        difference, scale = ctx.saved_tensors
        grad = g * scale[:, None]
        return grad, (g * difference).sum((0, 2)), -grad.sum((0, 2))


class DequantizeWrong(Dequantize):
    @staticmethod
    def backward(ctx, g):
        difference, scale = ctx.saved_tensors
        grad = g * scale[:, None]
        low = (g.half() * scale[:, None].half()).to(g.dtype)
        return low, (g * difference).sum((0, 2)), -grad.sum((0, 2))


class LearnedClamp(Function):
    """x between 0 and alpha, a number."""

    @staticmethod
    def forward(ctx, x, alpha):
        ctx.save_for_backward(x, alpha)
        return torch.where(x >= alpha, alpha, torch.where(x > 0, x, 0))

    @staticmethod
    def backward(ctx, g):
        x, alpha = ctx.saved_tensors
        return g * ((x > 0) & (x < alpha)), (g * (x >= alpha)).sum()


class LearnedClampWrong(LearnedClamp):
    @staticmethod
    def backward(ctx, g):
        x, alpha = ctx.saved_tensors
        return g * ((x > 0) & (x < alpha)), (g * (x >= alpha)).mean()


OPERATIONS = [
    Operation(
        "dequantization",
        Dequantize,
        DequantizeWrong,
        lambda q, scale, zero: scale[:, None] * (q - zero[:, None]),
        lambda: {"q": 3 * torch.randn(3, 4, 5), "scale": torch.rand(4) + 0.5, "zero": torch.randn(4)},
        named="the gradient of q is computed in float16: no more exact than that",
        kinds=("only in one dtype",),
        named_words=(r"float16|half", r"(exact|precis|accura)", r"rounded|rounding"),
        located=(r"gradient of q\b",),
    ),
    Operation(
        "clamp with a learned bound",
        LearnedClamp,
        LearnedClampWrong,
        lambda x, alpha: torch.where(x >= alpha, alpha, torch.where(x > 0, x, 0)),
        lambda: {"x": 2 * torch.randn(5, 6), "alpha": torch.tensor(1.25)},
        named="the gradient of alpha is a mean over the 30 elements instead of a sum",
        kinds=("constant factor",),
        named_words=(
            r"1/30|0\.0333",
            r"mean .*(instead|in place|for|not).*sum",
            r"divided by 30",
            r"factor (of )?30\b",
        ),
        located=(r"gradient of alpha",),
    ),
]
WRONG, RIGHT = wrong_and_right(OPERATIONS)
