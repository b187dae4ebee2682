"""Activations: swish with a learned slope, squared ReLU, the Gaussian unit, CELU, gradient reversal."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas

ALPHA, REVERSAL = 1.5, 0.3


def swish(x, slope):
    return x * torch.sigmoid(slope * x)


def swish_backward(g, x, slope, *, inner=True, squared=True):
    s = torch.sigmoid(slope * x)
    curve = s * (1 - s)
    grad_x = g * (s + x * curve * (slope if inner else 1))
    return grad_x, (g * curve * (x * x if squared else x)).sum(0)


def squared_relu(x):
    return F.relu(x) ** 2


def gaussian_unit(x):
    return F.gelu(x)


def gaussian_unit_backward(g, x, *, variance=2 * math.pi):
    density = (-x * x / 2).exp() / math.sqrt(variance)
    return g * ((1 + torch.erf(x / math.sqrt(2))) / 2 + x * density)


def celu(x):
    return F.celu(x, ALPHA)


def celu_backward(g, x, *, divided=True):
    y = celu(x)
    return g * torch.where(x > 0, 1.0, y / ALPHA + 1 if divided else y + ALPHA)


def reverse(x):
    return x.detach() * (1 + REVERSAL) - REVERSAL * x


OPERATIONS = [
    Formulas(
        "swish with a learned slope",
        swish,
        lambda: {"x": torch.randn(5, 4), "slope": 0.5 + 1.5 * torch.rand(4)},
        swish_backward,
        (
            Mistake(
                "swish with a learned slope, inner derivative",
                lambda g, x, slope: swish_backward(g, x, slope, inner=False),
                named="the slope is missing in the derivative of sigmoid(slope x) with respect to x",
                kinds=("step left out", "another operand", "factor of one term"),
                named_words=(r"\bslope\b", r"\bmul\b.*left out", r"inner", r"multipl"),
                located=(r"gradient of x",),
            ),
            Mistake(
                "swish with a learned slope, x once in the slope's gradient",
                lambda g, x, slope: swish_backward(g, x, slope, squared=False),
                named="the gradient of slope has the factor x instead of x^2",
                kinds=("another operand", "step left out", "factor by element"),
                named_words=(r"\bx\b", r"\bmul\b", r"factor of its own", r"another derivative"),
                located=(r"gradient of slope",),
            ),
        ),
    ),
    Formulas(
        "squared ReLU",
        squared_relu,
        lambda: {"x": torch.randn(4, 6)},
        lambda g, x: 2 * g * F.relu(x),
        (
            Mistake(
                "squared ReLU, factor 2",
                lambda g, x: g * F.relu(x),
                named="the factor 2 of the square's derivative is missing",
                kinds=("constant factor",),
                named_words=(r"\b0\.5\b", r"1/2", r"\bhalf\b", r"\b2\b"),
                located=(r"gradient of x",),
            ),
        ),
    ),
    Formulas(
        "Gaussian unit",
        gaussian_unit,
        lambda: {"x": torch.randn(4, 7)},
        gaussian_unit_backward,
        (
            Mistake(
                "Gaussian unit, constant of the density",
                lambda g, x: gaussian_unit_backward(g, x, variance=math.pi),
                named="the term x times the density is divided by sqrt(pi) instead of sqrt(2 pi)",
                kinds=("factor of one term", "factor by element", "another operand"),
                named_words=(r"1\.41", r"0\.707", r"sqrt\(?2", r"another derivative", r"factor of its own"),
                located=(r"gradient of x",),
            ),
        ),
    ),
    Formulas(
        "CELU",
        celu,
        lambda: {"x": torch.randn(3, 8)},
        celu_backward,
        (
            Mistake(
                "CELU, derivative from the output",
                lambda g, x: celu_backward(g, x, divided=False),
                named="for x < 0 the derivative is y + alpha, that of ELU, instead of y / alpha + 1: 1.5 times it",
                kinds=("only for some values", "factor by element"),
                named_words=(r"(x|input|output|result|\by)\S* ?(is |are )?(<=?|negative|below|less)", r"\b1\.5\b"),
                located=(r"gradient of x", r"<|negative|below|less"),
            ),
        ),
    ),
    Formulas(
        "gradient reversal",
        reverse,
        lambda: {"x": torch.randn(4, 5)},
        lambda g, x: -REVERSAL * g,
        (
            Mistake(
                "gradient reversal, strength left out",
                lambda g, x: -g,
                named="the gradient is reversed without the strength 0.3",
                kinds=("constant factor",),
                named_words=(r"\b3\.33", r"10/3", r"\b0\.3\b"),
                located=(r"gradient of x",),
            ),
        ),
    ),
]

WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
