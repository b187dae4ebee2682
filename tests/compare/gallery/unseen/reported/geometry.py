"""Reported mistakes in rotations, distances and lengths."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

POWER = 3


def half_turned(x):
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)


def rotated(x, cos, sin):
    return x * cos + half_turned(x) * sin


class RotatedFunction(Function):
    @staticmethod
    def forward(ctx, x, cos, sin):
        ctx.save_for_backward(x, cos, sin)
        return rotated(x, cos, sin)

    @staticmethod
    def backward(ctx, g):
        x, cos, sin = ctx.saved_tensors
        return g * cos - half_turned(g * sin), (g * x).sum(0), (g * half_turned(x)).sum(0)


class RotaryEmbedding(Function):
    @staticmethod
    def forward(ctx, x, cos, sin):
        ctx.save_for_backward(x, cos, sin)
        return x * cos + half_turned(x) * sin

    @staticmethod
    def backward(ctx, dl):
        x, cos, sin = ctx.saved_tensors
        dx = dl * cos - half_turned(dl) * sin
        return dx, (dl * x).sum(0), (dl * half_turned(x)).sum(0)


def distances(x, y):
    return (x[:, None] - y).abs().pow(POWER).sum(-1).pow(1 / POWER)


class DistancesFunction(Function):
    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return distances(x, y)

    @staticmethod
    def backward(ctx, g):
        x, y = ctx.saved_tensors
        difference = x[:, None] - y
        ratio = difference.abs() / distances(x, y)[..., None]
        each = g[..., None] * difference.sign() * ratio ** (POWER - 1)
        return each.sum(1), -each.sum(0)


class PairwiseDistances(Function):
    @staticmethod
    def forward(ctx, x1, x2):
        dist = (x1.unsqueeze(1) - x2).abs().pow(POWER).sum(-1).pow(1 / POWER)
        ctx.save_for_backward(x1, x2, dist)
        return dist

    @staticmethod
    def backward(ctx, grad):
        x1, x2, dist = ctx.saved_tensors
        diff = x1.unsqueeze(1) - x2
        contribution = grad.unsqueeze(-1) * diff / dist.unsqueeze(-1)
        return contribution.sum(1), -contribution.sum(0)


def complex_length(z):
    return (z.real**2 + z.imag**2).sum(-1).sqrt()


class ComplexLengthFunction(Function):
    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return complex_length(z)

    @staticmethod
    def backward(ctx, g):
        (z,) = ctx.saved_tensors
        return (g / complex_length(z))[..., None] * z


class ComplexNorm(Function):
    @staticmethod
    def forward(ctx, z):
        length = torch.sqrt((z.abs() ** 2).sum(-1))
        ctx.save_for_backward(z, length)
        return length

    @staticmethod
    def backward(ctx, g):
        z, length = ctx.saved_tensors
        return (g / length).unsqueeze(-1) * z.conj()


OPERATIONS = [
    Operation(
        "rotary embedding, order of the turn and the product",
        RotatedFunction,
        RotaryEmbedding,
        rotated,
        lambda: {"x": torch.randn(5, 6), "cos": torch.randn(6), "sin": torch.randn(6)},
        named="the gradient is turned before the product with sin, not after it (PaddlePaddle/Paddle #74716)",
        kinds=("permuted", "another operand", "step left out", "shifted", "change of the source"),
        named_words=(r"sin",),
        located=(r"gradient of x",),
    ),
    Operation(
        "distances of a power, as Euclidean ones",
        DistancesFunction,
        PairwiseDistances,
        distances,
        lambda: (torch.randn(4, 3), torch.randn(5, 3)),
        named="the derivative is that of Euclidean distances whatever the power (flagos-ai/FlagGems #5023)",
        kinds=("another operand", "step left out", "factor of one term"),
        named_words=(r"pow|power|square|exponent",),
        located=(r"gradient of x", r"gradient of y"),
        options={"whole_numbers": False},
    ),
    Operation(
        "length of complex rows, conjugate",
        ComplexLengthFunction,
        ComplexNorm,
        complex_length,
        lambda: (torch.randn(5, 4, dtype=torch.complex128),),
        named="the gradient is the conjugate of the right one (HIPS/autograd #612)",
        kinds=("conjugated",),
        named_words=(r"conj",),
        located=(r"gradient of z",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
