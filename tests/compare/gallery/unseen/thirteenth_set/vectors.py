"""A squash of vectors: the direction stays, the length becomes smaller than 1."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right


def squashed(x):
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x * length / (1 + length**2)


class SquashedFunction(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return squashed(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        to_length = (g * x).sum(-1, keepdim=True) * (1 - length**2) / (1 + length**2) ** 2
        return g * length / (1 + length**2) + to_length * x / length


def squash_scale_grad(n):
    return 2 * n / (1 + n * n) ** 2


class CapsuleSquash(Function):
    @staticmethod
    def forward(ctx, s):
        n = s.norm(dim=-1, keepdim=True)
        ctx.save_for_backward(s, n)
        return n * n / (1 + n * n) * (s / n)

    @staticmethod
    def backward(ctx, grad_v):
        s, n = ctx.saved_tensors
        unit = s / n
        radial = (grad_v * unit).sum(dim=-1, keepdim=True)
        scale = n * n / (1 + n * n)
        return scale * (grad_v - radial * unit) + squash_scale_grad(n) * radial


OPERATIONS = [
    Operation(
        "squash of vectors, radial part",
        SquashedFunction,
        CapsuleSquash,
        squashed,
        lambda: (torch.randn(4, 3),),
        named="the radial term lacks the unit vector that it lies along: one number for all elements of a row",
        kinds=("another operand", "step left out", "factor of one term", "missing term"),
        named_words=(r"direction|unit", r"\b(div|mul|norm|vector_norm|linalg_vector_norm)\b", r"factor"),
        located=(r"gradient of (x|input 0)",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
