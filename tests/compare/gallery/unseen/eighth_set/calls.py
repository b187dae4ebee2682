"""Mistakes in what a Function keeps, returns or asks for: a gain, a projection, a sine, channels, phases."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right


class TanhWithGain(Function):
    @staticmethod
    def forward(ctx, x, gain):
        ctx.save_for_backward(x, gain)
        return x.tanh() * gain

    @staticmethod
    def backward(ctx, g):
        x, gain = ctx.saved_tensors
        t = x.tanh()
        return g * gain * (1 - t * t), (g * t).sum(0)


class TanhWithGainInPlace(TanhWithGain):
    @staticmethod
    def backward(ctx, g):
        x, gain = ctx.saved_tensors
        t = x.tanh()
        return g.mul_(gain * (1 - t * t)), (g * t).sum(0)


class Project(Function):
    asked_for_weight = 1

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight.mT

    @classmethod
    def backward(cls, ctx, g):
        x, weight = ctx.saved_tensors
        grad_x = g @ weight if ctx.needs_input_grad[0] else None
        return grad_x, g.mT @ x if ctx.needs_input_grad[cls.asked_for_weight] else None


class ProjectAskedForX(Project):
    asked_for_weight = 0


class Sine(Function):
    saved_dtype = None

    @classmethod
    def forward(cls, ctx, x, frequency):
        ctx.save_for_backward(x.to(cls.saved_dtype or x.dtype), frequency)
        return (frequency * x).sin()

    @staticmethod
    def backward(ctx, g):
        x, frequency = ctx.saved_tensors
        x = x.to(g.dtype)
        grad = g * (frequency * x).cos()
        return grad * frequency, (grad * x).sum(0)


class SineSavedInHalf(Sine):
    saved_dtype = torch.bfloat16


class Modulate(Function):
    dims = (2,)

    @staticmethod
    def forward(ctx, x, gain):
        ctx.save_for_backward(x, gain)
        return x * (1 + gain[..., None])

    @classmethod
    def backward(cls, ctx, g):
        x, gain = ctx.saved_tensors
        grad = g * x
        return g * (1 + gain[..., None]), grad.sum(2) if cls.dims else grad


class ModulateNotSummed(Modulate):
    dims = ()


class Phase(Function):
    @staticmethod
    def along(y, g):
        return (y.conj() * g).real

    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return z / z.abs()

    @classmethod
    def backward(cls, ctx, g):
        (z,) = ctx.saved_tensors
        y = z / z.abs()
        return (g - y * cls.along(y, g)) / z.abs()


class PhaseNotConjugated(Phase):
    @staticmethod
    def along(y, g):
        return (y * g).real


OPERATIONS = [
    Operation(
        "tanh with a gain, product in place",
        TanhWithGain,
        TanhWithGainInPlace,
        lambda x, gain: x.tanh() * gain,
        lambda: {"x": torch.randn(5, 4), "gain": torch.randn(4)},
        named="the incoming gradient is multiplied in place, and the gradient of gain is computed from the product",
        kinds=("changes the incoming gradient", "only in one layout", "another operand", "step left out"),
        named_words=(r"in.?place", r"modif", r"changes?\b"),
        located=(r"incoming gradient|gradient of gain|backward",),
    ),
    Operation(
        "projection, wrong index of needs_input_grad",
        Project,
        ProjectAskedForX,
        lambda x, weight: x @ weight.mT,
        lambda: {"x": torch.randn(5, 3), "weight": torch.randn(4, 3)},
        named="backward returns None for weight if x requires no gradient: it reads needs_input_grad[0]",
        kinds=("depends on which inputs require a gradient", "none"),
        named_words=(r"requires? a gradient", r"needs_input_grad", r"\bonly weight\b", r"requires? (no|none)"),
        located=(r"gradient of weight",),
    ),
    Operation(
        "sine, saved in bfloat16",
        Sine,
        SineSavedInHalf,
        lambda x, frequency: (frequency * x).sin(),
        lambda: {"x": torch.randn(5, 4), "frequency": 0.5 + torch.rand(4)},
        named="x is saved in bfloat16: the gradients are no more exact than that",
        kinds=("only in one dtype",),
        named_words=(r"bfloat16", r"precision|\bexact", r"round"),
        located=(r"gradient of x|\bx and frequency\b", r"\bfrequency\b"),
    ),
    Operation(
        "modulated channels, not summed",
        Modulate,
        ModulateNotSummed,
        lambda x, gain: x * (1 + gain[..., None]),
        lambda: {"x": torch.randn(2, 5, 3), "gain": torch.randn(2, 5)},
        named="the gradient of gain is not summed over the broadcast dimension: shape (2, 5, 3) instead of (2, 5)",
        kinds=("raises", "wrong shape"),
        named_words=(r"shape", r"[\[(]2, 5, 3[\])]"),
        located=(r"gradient of gain|backward|index 1",),
    ),
    Operation(
        "phase, not conjugated",
        Phase,
        PhaseNotConjugated,
        lambda z: z / z.abs(),
        lambda: {"z": torch.randn(4, 5, dtype=torch.complex64)},
        named="the part along the result uses y instead of its conjugate",
        kinds=("conjugated", "another operand", "missing term", "factor of one term"),
        named_words=(r"conj", r"imaginary"),
        located=(r"gradient of z",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
