"""Mistakes in what a Function keeps, changes or sums: logarithms, probabilities, a gate, mixed examples."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right


class LogFeatures(Function):
    x_kept_for = (0, 1)

    @classmethod
    def forward(cls, ctx, x, weight):
        is_kept = any(ctx.needs_input_grad[i] for i in cls.x_kept_for)
        ctx.save_for_backward(x if is_kept else None, weight)
        return (x * x + 1).log() @ weight

    @staticmethod
    def backward(ctx, g):
        x, weight = ctx.saved_tensors
        if x is None:
            return None, None
        return 2 * x / (x * x + 1) * (g @ weight.mT), (x * x + 1).log().mT @ g


class LogFeaturesKeptForX(LogFeatures):
    x_kept_for = (0,)


class Probabilities(Function):
    saved_dtype = None

    @classmethod
    def forward(cls, ctx, x):
        p = x.softmax(1)
        ctx.save_for_backward(p.to(cls.saved_dtype or p.dtype))
        return p

    @staticmethod
    def backward(ctx, g):
        p = ctx.saved_tensors[0].to(g.dtype)
        return p * (g - (g * p).sum(1, keepdim=True))


class ProbabilitiesInHalf(Probabilities):
    saved_dtype = torch.float16


class Gate(Function):
    @staticmethod
    def forward(ctx, a, b):
        gate = a.sigmoid()
        ctx.save_for_backward(gate, b)
        return gate * b

    @staticmethod
    def backward(ctx, g):
        gate, b = ctx.saved_tensors
        return g * b * gate * (1 - gate), g * gate


class GateInPlace(Gate):
    @staticmethod
    def backward(ctx, g):
        gate, b = ctx.saved_tensors
        return gate.mul_(1 - gate) * g * b, g * gate


class Mixed(Function):
    dim = 1

    @staticmethod
    def forward(ctx, share, a, b):
        ctx.save_for_backward(share, a, b)
        return share[:, None] * a + (1 - share[:, None]) * b

    @classmethod
    def backward(cls, ctx, g):
        share, a, b = ctx.saved_tensors
        return (g * (a - b)).sum(cls.dim), g * share[:, None], g * (1 - share[:, None])


class MixedOverExamples(Mixed):
    dim = 0


OPERATIONS = [
    Operation(
        "logarithms times a weight, x not kept",
        LogFeatures,
        LogFeaturesKeptForX,
        lambda x, weight: (x * x + 1).log() @ weight,
        lambda: {"x": torch.randn(5, 3), "weight": torch.randn(3, 4)},
        named="x is saved only if it requires a gradient: without it backward returns None for weight",
        kinds=("depends on which inputs require a gradient", "none"),
        named_words=(r"requires? a gradient", r"needs_input_grad", r"\bonly weight\b", r"requires? (no|none)"),
        located=(r"gradient of weight",),
    ),
    Operation(
        "probabilities, saved in float16",
        Probabilities,
        ProbabilitiesInHalf,
        lambda x: x.softmax(1),
        lambda: {"x": torch.randn(4, 6)},
        named="the probabilities are saved in float16: the gradient is no more exact than that",
        kinds=("only in one dtype",),
        named_words=(r"float16", r"precision|\bexact", r"round"),
        located=(r"gradient of x",),
    ),
    Operation(
        "gate, saved tensor changed",
        Gate,
        GateInPlace,
        lambda a, b: a.sigmoid() * b,
        lambda: {"a": torch.randn(5, 4), "b": torch.randn(5, 4)},
        named="backward multiplies the saved gate by 1 minus the gate in place, before the gradient of b takes it",
        kinds=("another operand", "factor by element", "step left out", "depends on earlier calls", "not repeatable"),
        named_words=(
            r"in.?place|modif",
            r"sigmoid",
            r"factor of its own|another derivative",
            r"second (call|backward)|(between|after).*calls?\b",
        ),
        located=(r"gradient of b|backward",),
    ),
    Operation(
        "mixed examples, summed over the examples",
        Mixed,
        MixedOverExamples,
        lambda share, a, b: share[:, None] * a + (1 - share[:, None]) * b,
        lambda: {"share": torch.rand(5), "a": torch.randn(5, 3), "b": torch.randn(5, 3)},
        named="the gradient of share is summed over the examples instead of the columns: shape (3,) instead of (5,)",
        kinds=("raises", "wrong shape", "wrong sum"),
        named_words=(r"shape", r"[\[(]3,?[\])]", r"sum"),
        located=(r"gradient of share|backward|index 0",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
