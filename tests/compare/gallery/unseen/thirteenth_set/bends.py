"""Bends of a line: a squash of vectors, companding, a smooth rectifier."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right


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


def companded(x, mu):
    return x.sign() * torch.log1p(mu * x.abs()) / torch.log1p(mu)


class MuLaw(Function):
    @staticmethod
    def forward(ctx, x, mu):
        top = torch.log1p(mu * x.abs())
        bottom = torch.log1p(mu)
        ctx.save_for_backward(x, mu, top, bottom)
        return torch.sign(x) * top / bottom

    @staticmethod
    def backward(ctx, g):
        x, mu, top, bottom = ctx.saved_tensors
        a = x.abs()
        grad_x = g * mu / ((1 + mu * a) * bottom)
        d_top = a / (1 + mu * a)
        d_bottom = 1 / (1 + mu)
        grad_mu = g * x.sign() * (d_top - top * d_bottom) / bottom
        return grad_x, grad_mu.sum()


def square_plus(x, bend):
    return (x + torch.sqrt(x * x + bend)) / 2


class SquarePlusFunction(Function):
    @staticmethod
    def forward(ctx, x, bend):
        ctx.save_for_backward(x, bend)
        return square_plus(x, bend)

    @staticmethod
    def backward(ctx, g):
        x, bend = ctx.saved_tensors
        root = torch.sqrt(x * x + bend)
        return g * (1 + x / root) / 2, (g / (4 * root)).sum((0, 2))[:, None]


class SquarePlus(Function):
    @staticmethod
    def forward(ctx, x, b):
        r = torch.sqrt(x.square() + b)
        ctx.save_for_backward(x, r)
        return 0.5 * (x + r)

    @staticmethod
    def backward(ctx, grad_out):
        x, r = ctx.saved_tensors
        grad_x = grad_out * 0.5 * (1 + x / r)
        grad_b = grad_out * 0.25 / r
        return grad_x, grad_b.sum(dim=0).mean(dim=-1, keepdim=True)


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
    Operation(
        "root of a square, mean over the steps",
        SquarePlusFunction,
        SquarePlus,
        square_plus,
        lambda: {"x": torch.randn(4, 3, 5), "bend": torch.rand(3, 1) + 0.5},
        named="bend: the mean over the last dimension instead of the sum",
        kinds=("constant factor", "wrong sum"),
        named_words=(r"\bmean\b|average", r"0\.2\b|1/5|\b5\b"),
        located=(r"gradient of bend",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "companding, square in the quotient",
            MuLaw.apply,
            companded,
            lambda: {"x": torch.randn(5, 4), "mu": torch.rand(()) * 3 + 4},
            whole_numbers=False,
        ),
        named="mu: the denominator's term is divided by log(1 + mu) once instead of twice",
        kinds=("factor of one term", "another operand", "step left out", "missing term"),
        named_words=(r"\bdiv\b", r"log1p", r"squar|power|twice", r"factor|times"),
        located=(r"gradient of mu",),
    ),
]
