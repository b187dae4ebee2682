"""Activations: an exponential unit with two learned parameters, and probabilities from a Taylor polynomial."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right


def two_parameter_unit(x, a, b):
    return torch.where(x >= 0, a / b * x, a * (torch.exp(x.clamp(max=0) / b) - 1))


class TwoParameterUnitFunction(Function):
    @staticmethod
    def forward(ctx, x, a, b):
        e = torch.exp(x.clamp(max=0) / b)
        ctx.save_for_backward(x, a, b, e)
        return torch.where(x >= 0, a / b * x, a * (e - 1))

    @staticmethod
    def backward(ctx, g):
        x, a, b, e = ctx.saved_tensors
        slope = a / b * e
        by_a = torch.where(x >= 0, x / b, e - 1)
        return g * slope, (g * by_a).sum(), -(g * slope * x / b).sum()


class PELU(Function):
    """Parametric ELU: a/b * x for x >= 0, a * (exp(x/b) - 1) below."""

    @staticmethod
    def forward(ctx, x, a, b):
        ctx.save_for_backward(x, a, b)
        pos = x >= 0
        y = torch.empty_like(x)
        y[pos] = a / b * x[pos]
        y[~pos] = a * (torch.exp(x[~pos] / b) - 1)
        return y

    @staticmethod
    def backward(ctx, grad_output):
        x, a, b = ctx.saved_tensors
        pos = (x >= 0).to(x.dtype)
        neg = 1 - pos
        ex = torch.exp(torch.clamp(x, max=0) / b)

        grad_x = grad_output * (pos * a / b + neg * a / b * ex)
        grad_a = (grad_output * (pos * x / b + neg * (ex - 1))).sum()
        grad_b = (grad_output * neg * (-a * x / b**2 * ex)).sum()
        return grad_x, grad_a, grad_b


def polynomial_probabilities(x):
    n = 1 + x + x * x / 2
    return n / n.sum(-1, keepdim=True)


class PolynomialProbabilitiesFunction(Function):
    @staticmethod
    def forward(ctx, x):
        n = 1 + x + x * x / 2
        total = n.sum(-1, keepdim=True)
        p = n / total
        ctx.save_for_backward(x, p, total)
        return p

    @staticmethod
    def backward(ctx, g):
        x, p, total = ctx.saved_tensors
        return (1 + x) / total * (g - (g * p).sum(-1, keepdim=True))


class TaylorSoftmax(Function):
    """Second order Taylor softmax: (1 + z + z^2/2) normalized over the classes."""

    @staticmethod
    def forward(ctx, logits):
        numerator = 1 + logits + 0.5 * logits.pow(2)
        probs = numerator / numerator.sum(dim=-1, keepdim=True)
        ctx.save_for_backward(probs)
        return probs

    @staticmethod
    def backward(ctx, grad_probs):
        (probs,) = ctx.saved_tensors
        dot = torch.sum(grad_probs * probs, dim=-1, keepdim=True)
        return probs * (grad_probs - dot)


OPERATIONS = [
    Operation(
        "exponential unit with two parameters, values above 0",
        TwoParameterUnitFunction,
        PELU,
        two_parameter_unit,
        lambda: {"x": torch.randn(4, 6), "a": 0.5 + torch.rand(()), "b": 0.5 + torch.rand(())},
        named="b: the values above 0 have no part in its gradient, but a / b * x depends on b too",
        kinds=("missing term", "only for some values", "step left out"),
        named_words=(r"missing|left out", r"x ?>=? ?0|positive|\bpos\b|\bneg\b|x ?< ?0|where"),
        located=(r"gradient of b\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "probabilities from a polynomial, derivative of softmax",
        PolynomialProbabilitiesFunction,
        TaylorSoftmax,
        polynomial_probabilities,
        lambda: {"x": torch.randn(4, 5)},
        named="the derivative is that of softmax; that of 1 + x + x^2/2 is 1 + x, not the polynomial itself",
        kinds=("another operand", "factor by element", "factor of one term", "step left out"),
        named_words=(r"softmax", r"1 \+ (x|logits)", r"exp\b|exponential", r"derivative of (pow|x \* x|square|mul)"),
        located=(r"gradient of (x|logits)\b",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
