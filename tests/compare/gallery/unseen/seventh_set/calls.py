"""Mistakes in what a Function keeps, returns or asks for: scaled channels, a heavy tail, tanhshrink, distances."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right


class ScaledChannels(Function):
    dims = (0, 2)

    @staticmethod
    def forward(ctx, x, s):
        ctx.save_for_backward(x, s)
        return x * s[:, None]

    @classmethod
    def backward(cls, ctx, g):
        x, s = ctx.saved_tensors
        return g * s[:, None], (g * x).sum(cls.dims)


class ScaledChannelsOfBatch(ScaledChannels):
    dims = (0,)


class HeavyTail(Function):
    @staticmethod
    def forward(ctx, x):
        square = x * x
        ctx.save_for_backward(x, square)
        return (square + 1).log()

    @staticmethod
    def backward(ctx, g):
        x, square = ctx.saved_tensors
        return g * 2 * x / (square + 1)


class HeavyTailInPlace(HeavyTail):
    @staticmethod
    def forward(ctx, x):
        square = x * x
        ctx.save_for_backward(x, square)
        return square.add_(1).log()


class Tanhshrink(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x - x.tanh()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * x.tanh() ** 2


class TanhshrinkInFloat32(Tanhshrink):
    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return (g.float() * x.float().tanh() ** 2).to(g.dtype)


class SquaredDistance(Function):
    returns_early = False

    @staticmethod
    def forward(ctx, x, center):
        ctx.save_for_backward(x, center)
        return ((x - center) ** 2).sum(1)

    @classmethod
    def backward(cls, ctx, g):
        if cls.returns_early and not ctx.needs_input_grad[0]:
            return None, None
        x, center = ctx.saved_tensors
        grad = 2 * g[:, None] * (x - center)
        return grad, -grad.sum(0)


class SquaredDistanceOfX(SquaredDistance):
    returns_early = True


OPERATIONS = [
    Operation(
        "scaled channels, sum over the batch only",
        ScaledChannels,
        ScaledChannelsOfBatch,
        lambda x, s: x * s[:, None],
        lambda: {"x": torch.randn(2, 5, 3), "s": torch.randn(5)},
        named="the gradient of s is not summed over the last dimension: its shape is (5, 3) instead of (5,)",
        kinds=("raises", "wrong shape"),
        named_words=(r"shape", r"[\[(]5, 3[\])]"),
        located=(r"gradient of s|backward|index 1",),
    ),
    Operation(
        "heavy tail, saved tensor changed",
        HeavyTail,
        HeavyTailInPlace,
        lambda x: (x * x + 1).log(),
        lambda: {"x": torch.randn(5, 6)},
        named="forward adds 1 to a tensor after saving it: backward divides by x^2 + 2 instead of x^2 + 1",
        kinds=("another operand", "factor by element", "step left out"),
        named_words=(
            r"\badd\b",
            r"\b2 (instead|in place|for)|instead of 1",
            r"factor of its own",
            r"another derivative",
        ),
        located=(r"gradient of x",),
    ),
    Operation(
        "tanhshrink, float32",
        Tanhshrink,
        TanhshrinkInFloat32,
        F.tanhshrink,
        lambda: {"x": torch.randn(5, 6)},
        named="backward computes in float32, also for float64",
        kinds=("only in one dtype",),
        named_words=(r"float32", r"float64", r"precision|\bexact"),
        located=(r"gradient of x",),
    ),
    Operation(
        "squared distance, early return",
        SquaredDistance,
        SquaredDistanceOfX,
        lambda x, center: ((x - center) ** 2).sum(1),
        lambda: {"x": torch.randn(5, 3), "center": torch.randn(3)},
        named="backward returns None for center if x requires no gradient",
        kinds=("depends on which inputs require a gradient", "none"),
        named_words=(r"requires? a gradient", r"needs_input_grad", r"\bonly center\b", r"requires? (no|none)"),
        located=(r"gradient of center",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
