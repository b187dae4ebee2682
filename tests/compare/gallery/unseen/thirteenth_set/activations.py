"""Activations: a quotient of polynomials, a line that is switched on or off."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right


def rational(x, numerator, denominator):
    a, b, c = numerator
    return (a + b * x + c * x * x) / (1 + (denominator * x).abs())


class RationalFunction(Function):
    @staticmethod
    def forward(ctx, x, numerator, denominator):
        ctx.save_for_backward(x, numerator, denominator)
        return rational(x, numerator, denominator)

    @staticmethod
    def backward(ctx, g):
        x, (a, b, c), denominator = ctx.saved_tensors
        below = 1 + (denominator * x).abs()
        to_above, to_below = g / below, -g * (a + b * x + c * x * x) / below**2
        to_product = to_below * (denominator * x).sign()
        grad_x = to_above * (b + 2 * c * x) + to_product * denominator
        grad_numerator = torch.stack([to_above.sum(), (to_above * x).sum(), (to_above * x * x).sum()])
        return grad_x, grad_numerator, (to_product * x).sum(0)


class PadeActivation(Function):
    @staticmethod
    def forward(ctx, x, p, q):
        num = p[0] + x * (p[1] + x * p[2])
        den = 1 + torch.abs(q * x)
        ctx.save_for_backward(x, p, q, num, den)
        return num / den

    @staticmethod
    def backward(ctx, grad):
        x, p, q, num, den = ctx.saved_tensors
        d_num = p[1] + 2 * p[2] * x
        d_den = q.abs() * x.sign()
        grad_x = grad * (d_num * den - num * d_den) / den.square()
        grad_p = torch.stack([(grad * x**k / den).sum() for k in range(3)])
        grad_q = -(grad * num / den.square() * x.abs()).sum(dim=0)
        return grad_x, grad_p, grad_q


def switched(x, first, second, beta):
    return (first - second) * x * torch.sigmoid(beta * (first - second) * x) + second * x


class SwitchedFunction(Function):
    @staticmethod
    def forward(ctx, x, first, second, beta):
        ctx.save_for_backward(x, first, second, beta)
        return switched(x, first, second, beta)

    @staticmethod
    def backward(ctx, g):
        x, first, second, beta = ctx.saved_tensors
        difference = (first - second) * x
        s = torch.sigmoid(beta * difference)
        to_difference = g * (s + difference * beta * s * (1 - s))
        grad_x = to_difference * (first - second) + g * second
        grad_first = (to_difference * x).sum(0)
        return grad_x, grad_first, (g * x).sum(0) - grad_first, (g * difference**2 * s * (1 - s)).sum(0)


class ACON(Function):
    @staticmethod
    def forward(ctx, x, p1, p2, beta):
        dp = p1 - p2
        gate = torch.sigmoid(beta * dp * x)
        ctx.save_for_backward(x, dp, p2, beta, gate)
        return dp * x * gate + p2 * x

    @staticmethod
    def backward(ctx, grad_y):
        x, dp, p2, beta, gate = ctx.saved_tensors
        slope = gate * (1 - gate)
        inner = gate + beta * dp * x * slope
        grad_x = grad_y * (dp * inner + p2)
        grad_p1 = (grad_y * x * inner).sum(dim=0)
        grad_p2 = (grad_y * x * (1 - gate)).sum(dim=0)
        grad_beta = (grad_y * (dp * x).square() * slope).sum(dim=0)
        return grad_x, grad_p1, grad_p2, grad_beta


SIGNS = torch.tensor([1, -1, 1, -1])
SLOPES = ("x", "first", "second", "beta")

OPERATIONS = [
    Operation(
        "quotient of polynomials, sign of the denominator's weights",
        RationalFunction,
        PadeActivation,
        rational,
        lambda: {"x": torch.randn(5, 4), "numerator": torch.randn(3), "denominator": SIGNS * (torch.rand(4) + 0.2)},
        named="denominator: the sign of the weight is missing: columns of negative weights have the negated gradient",
        kinds=("only for some values", "only at some indices", "factor by element", "step left out"),
        named_words=(r"\babs\b|\bsign\b|\bsgn\b", r"<\s*0|negative|-1\b"),
        located=(r"gradient of denominator",),
    ),
    Operation(
        "line switched on or off, second slope in the gate",
        SwitchedFunction,
        ACON,
        switched,
        lambda: {name: torch.randn(5, 4) if name == "x" else torch.randn(4) for name in SLOPES},
        named="second: the part of the derivative through the gate's argument is missing",
        kinds=("missing term",),
        named_words=(r"missing", r"constant", r"detach", r"no effect"),
        located=(r"gradient of second",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
