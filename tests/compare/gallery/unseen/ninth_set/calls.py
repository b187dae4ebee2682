"""Mistakes in what a Function keeps, returns or asks for: an angle, a layer with a bias, a bilinear score."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right


class Angle(Function):
    @staticmethod
    def forward(ctx, y, x):
        ctx.save_for_backward(y, x)
        return torch.atan2(y, x)

    @staticmethod
    def backward(ctx, g):
        y, x = ctx.saved_tensors
        grad = g / (x * x + y * y)
        return grad * x, -grad * y


class AngleSwapped(Angle):
    @classmethod
    def backward(cls, ctx, g):
        return Angle.backward(ctx, g)[::-1]


class LayerWithBias(Function):
    asked_for_bias = 2

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return x @ weight.mT + bias

    @classmethod
    def backward(cls, ctx, g):
        x, weight = ctx.saved_tensors
        grad_x = g @ weight if ctx.needs_input_grad[0] else None
        grad_weight = g.mT @ x if ctx.needs_input_grad[1] else None
        return grad_x, grad_weight, g.sum(0) if ctx.needs_input_grad[cls.asked_for_bias] else None


class LayerWithBiasAskedForWeight(LayerWithBias):
    asked_for_bias = 1


class BilinearScore(Function):
    saved_dtype = None

    @classmethod
    def forward(cls, ctx, a, weight, b):
        ctx.save_for_backward(a, weight.to(cls.saved_dtype or weight.dtype), b)
        return ((a @ weight) * b).sum(1)

    @staticmethod
    def backward(ctx, g):
        a, weight, b = ctx.saved_tensors
        weight, g = weight.to(a.dtype), g[:, None]
        return g * b @ weight.mT, a.mT @ (g * b), g * (a @ weight)


class BilinearScoreSavedInHalf(BilinearScore):
    saved_dtype = torch.float16


OPERATIONS = [
    Operation(
        "angle of a vector, gradients exchanged",
        Angle,
        AngleSwapped,
        torch.atan2,
        lambda: {"y": torch.randn(4, 5), "x": torch.randn(4, 5)},
        named="backward returns the gradients of y and x in the other order",
        kinds=("swapped",),
        named_words=(r"swap", r"exchang", r"other order", r"gradient of the other", r"is (the gradient )?of [xy]\b"),
        located=(r"\by\b", r"\bx\b"),
        options={"whole_numbers": False},
    ),
    Operation(
        "layer with a bias, wrong index of needs_input_grad",
        LayerWithBias,
        LayerWithBiasAskedForWeight,
        lambda x, weight, bias: x @ weight.mT + bias,
        lambda: {"x": torch.randn(5, 3), "weight": torch.randn(4, 3), "bias": torch.randn(4)},
        named="backward returns None for bias if weight is frozen: it reads needs_input_grad[1]",
        kinds=("depends on which inputs require a gradient", "none"),
        named_words=(r"requires? a gradient", r"needs_input_grad", r"\bonly bias\b", r"requires? (no|none)"),
        located=(r"gradient of bias",),
    ),
    Operation(
        "bilinear score, weight saved in half precision",
        BilinearScore,
        BilinearScoreSavedInHalf,
        lambda a, weight, b: ((a @ weight) * b).sum(1),
        lambda: {"a": torch.randn(5, 3), "weight": torch.randn(3, 4), "b": torch.randn(5, 4)},
        named="weight is saved in float16: the gradients of a and b are no more exact than that",
        kinds=("only in one dtype",),
        named_words=(r"float16|\bhalf\b", r"precision|\bexact", r"round"),
        located=(r"gradient of a|\ba and b\b", r"\bb\b"),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
