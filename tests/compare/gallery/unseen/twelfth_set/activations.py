"""Activations: the inverse of softplus, sparse probabilities, an inverse square root, the cardinal sine."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right


def inverse_softplus(y):
    return y + torch.log(-torch.expm1(-y))


class InvSoftplus(Function):
    @staticmethod
    def forward(ctx, y):
        x = y + torch.log(-torch.expm1(-y))
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return grad_output * torch.sigmoid(x)


def sparse_probabilities(x):
    """Entmax with alpha = 1.5: squares of the positive part of x / 2 - tau, whose sum is 1."""
    half = x / 2
    ordered = half.sort(dim=1, descending=True).values
    k = torch.arange(1, x.shape[1] + 1, dtype=x.dtype)
    mean = ordered.cumsum(1) / k
    spread = k * ((ordered**2).cumsum(1) / k - mean**2)
    tau = mean - ((1 - spread) / k).clamp(min=1e-6).sqrt()
    size = (tau <= ordered).sum(1, keepdim=True)
    return (half - tau.gather(1, size - 1)).clamp(min=0) ** 2


class Entmax15Function(Function):
    @staticmethod
    def forward(ctx, x):
        p = sparse_probabilities(x)
        ctx.save_for_backward(p)
        return p

    @staticmethod
    def backward(ctx, g):
        (p,) = ctx.saved_tensors
        root = p.sqrt()
        mean = (g * root).sum(1, keepdim=True) / root.sum(1, keepdim=True)
        return root * (g - mean)


class SparseProbabilities(Function):
    @staticmethod
    def forward(ctx, scores):
        probabilities = sparse_probabilities(scores)
        ctx.save_for_backward(probabilities)
        return probabilities

    @staticmethod
    def backward(ctx, grad):
        (p,) = ctx.saved_tensors
        centred = grad - (p * grad).sum(dim=1, keepdim=True)
        return p * centred


def isrlu(x, alpha):
    return torch.where(x < 0, x / torch.sqrt(1 + alpha * x * x), x)


class ISRLUFunction(Function):
    @staticmethod
    def forward(ctx, x, alpha):
        ctx.save_for_backward(x, alpha)
        return isrlu(x, alpha)

    @staticmethod
    def backward(ctx, g):
        x, alpha = ctx.saved_tensors
        negative = x.clamp(max=0)
        cube = (1 + alpha * negative * negative) ** -1.5
        return g * cube, (-0.5 * g * negative**3 * cube).sum(0)


class ISRLU(Function):
    @staticmethod
    def forward(ctx, tensor, alpha):
        nisr = torch.rsqrt(1.0 + alpha * tensor**2)
        ctx.save_for_backward(tensor, nisr)
        return torch.where(tensor < 0, tensor * nisr, tensor)

    @staticmethod
    def backward(ctx, grad_out):
        tensor, nisr = ctx.saved_tensors
        slope = torch.where(tensor < 0, nisr**3, torch.ones_like(nisr))
        grad_alpha = -grad_out * (tensor * nisr) ** 3 / 2
        return grad_out * slope, grad_alpha.sum(dim=0)


def cardinal_sine(x):
    divisor = torch.where(x == 0, torch.ones_like(x), x)
    return torch.where(x == 0, torch.ones_like(x), divisor.sin() / divisor)


class CardinalSineFunction(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return cardinal_sine(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        divisor = torch.where(x == 0, torch.ones_like(x), x)
        slope = x.cos() / divisor - x.sin() / divisor / divisor
        return torch.where(x == 0, torch.zeros_like(x), g * slope)


class Sinc(Function):
    @staticmethod
    def forward(ctx, x):
        y = torch.sin(x) / x
        y[x == 0] = 1
        ctx.save_for_backward(x, y)
        return y

    @staticmethod
    def backward(ctx, grad_y):
        x, y = ctx.saved_tensors
        return grad_y * (torch.cos(x) - y) / x


OPERATIONS = [
    Operation(
        "sparse probabilities, Jacobian of the softmax",
        Entmax15Function,
        SparseProbabilities,
        sparse_probabilities,
        lambda: (torch.randn(4, 6) * 1.5,),
        named="the derivative of the softmax, p (g - sum p g), where the roots of the probabilities belong",
        kinds=("another operand", "step left out", "factor by element"),
        named_words=(r"softmax", r"\broots?\b|sqrt|square"),
        located=(r"gradient of (x|scores|input 0)",),
        options={"kinks": True, "whole_numbers": False},
    ),
    Operation(
        "inverse square root unit, positive elements",
        ISRLUFunction,
        ISRLU,
        isrlu,
        lambda: {"x": torch.randn(6, 4), "alpha": 0.5 + torch.rand(4)},
        named="alpha's gradient has a term of each positive x, for which forward does not use alpha",
        kinds=("step left out", "missing term", "only for some values"),
        named_words=(r"mask|where|clamp", r"positive|x [<>]=? ?0|negative", r"one too many|extra"),
        located=(r"gradient of alpha",),
    ),
    Operation(
        "cardinal sine, zero",
        CardinalSineFunction,
        Sinc,
        cardinal_sine,
        lambda: (torch.randn(5, 4) * 2,),
        named="the derivative at 0 is NaN: 0 divided by 0",
        kinds=("not finite", "only at zeros", "only for some values"),
        named_words=(r"\bNaN\b|finite", r"zeros?\b|= ?0\b"),
        located=(r"gradient of (x|input 0)", r"\b0\b|zeros?"),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "inverse of softplus, sigmoid",
            InvSoftplus.apply,
            inverse_softplus,
            lambda: (0.3 + torch.rand(5, 4) * 3,),
            whole_numbers=False,
        ),
        named="the derivative is softplus's at x, the sigmoid: its reciprocal belongs there",
        kinds=("another operand", "factor by element", "step left out"),
        named_words=(r"sigmoid|softplus", r"reciprocal|\b1 ?/|divi[ds]", r"another (function|derivative)"),
        located=(r"gradient of (y|input 0)",),
    ),
]
