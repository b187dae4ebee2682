"""Activations: a scaled square of ReLU, a smooth ReLU without exponentials, a threshold that keeps large values."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

LAMBDA = 0.5


def star_relu(x, s, b):
    return s * x.clamp(min=0).square() + b


class StarReLUFunction(Function):
    @staticmethod
    def forward(ctx, x, s, b):
        ctx.save_for_backward(x, s)
        return s * x.clamp(min=0) ** 2 + b

    @staticmethod
    def backward(ctx, g):
        x, s = ctx.saved_tensors
        positive = x.clamp(min=0)
        return g * 2 * s * positive, (g * positive * positive).sum(), g.sum()


class StarReLU(Function):
    """s * relu(x)^2 + b with a learned scale and bias, from MetaFormer."""

    @staticmethod
    def forward(ctx, x, scale, bias):
        relu = torch.relu(x)
        ctx.save_for_backward(relu, scale)
        return scale * relu.pow(2) + bias

    @staticmethod
    def backward(ctx, grad_output):
        relu, scale = ctx.saved_tensors
        grad_x = grad_scale = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = grad_output * 2 * scale * relu
        if ctx.needs_input_grad[1]:
            grad_scale = (grad_output * relu).sum()
        if ctx.needs_input_grad[2]:
            grad_bias = grad_output.sum()
        return grad_x, grad_scale, grad_bias


def square_plus(x, b):
    return (x + (x * x + b).sqrt()) / 2


class SquarePlusFunction(Function):
    @staticmethod
    def forward(ctx, x, b):
        root = torch.sqrt(x.square() + b)
        ctx.save_for_backward(x, root)
        return (x + root) / 2

    @staticmethod
    def backward(ctx, g):
        x, root = ctx.saved_tensors
        return g / 2 * (1 + x / root), (g / (4 * root)).sum(0)


class Squareplus(Function):
    """0.5 * (x + sqrt(x^2 + b)), one b per channel."""

    @staticmethod
    def forward(ctx, x, b):
        s = torch.sqrt(x**2 + b)
        ctx.save_for_backward(x, s)
        return 0.5 * (x + s)

    @staticmethod
    def backward(ctx, grad_output):
        x, s = ctx.saved_tensors
        grad_x = grad_output * 0.5 * (1 + x / s)
        grad_b = grad_output * 0.5 / s
        return grad_x, grad_b.sum(dim=0)


def hard_shrink(x, w):
    y = x @ w
    return torch.where(y.abs() > LAMBDA, y, torch.zeros_like(y))


class LinearHardshrink(Function):
    """Sparse codes: hardshrink(x @ w)."""

    @staticmethod
    def forward(ctx, x, w):
        y = x @ w
        ctx.save_for_backward(x, w, y)
        return y * (y.abs() > LAMBDA)

    @staticmethod
    def backward(ctx, grad_output):
        x, w, y = ctx.saved_tensors
        grad_y = grad_output.clone()
        grad_y[y <= LAMBDA] = 0
        return grad_y @ w.t(), x.t() @ grad_y


OPERATIONS = [
    Operation(
        "scaled square of ReLU, scale's gradient",
        StarReLUFunction,
        StarReLU,
        star_relu,
        lambda: {"x": torch.randn(4, 6), "s": 0.5 + torch.rand(()), "b": torch.randn(())},
        named="s: its gradient has ReLU of x as the factor, and the square is missing",
        kinds=("another operand", "step left out", "missing term", "factor by element"),
        named_words=(r"square|pow|\*\* ?2", r"relu\b.*relu\b"),
        located=(r"gradient of (s|scale)\b",),
        options={"kinks": True},
    ),
    Operation(
        "smooth ReLU without exponentials, derivative of the root",
        SquarePlusFunction,
        Squareplus,
        square_plus,
        lambda: {"x": torch.randn(4, 5), "b": 0.5 + torch.rand(5)},
        named="b: the factor 1/2 of the root's derivative is missing, so its gradient is twice what it should be",
        kinds=("constant factor",),
        named_words=(r"factor.*\b(2|0\.5|1/2)\b", r"\b(2|0\.5|1/2)\b.*(factor|times)", r"twice|half"),
        located=(r"gradient of b\b",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "codes above a threshold, negative codes",
            LinearHardshrink.apply,
            hard_shrink,
            lambda: {"x": torch.randn(5, 4), "w": torch.randn(4, 6)},
            kinks=True,
        ),
        named="backward compares y, not its absolute value, with lambda: negative values get no gradient",
        kinds=("only for some values", "another operand", "step left out", "only at some indices"),
        named_words=(r"negative|below|y <|< ?-|sign", r"\babs\b|absolute|magnitude"),
        located=(r"gradient of (x|w)\b",),
    ),
]
