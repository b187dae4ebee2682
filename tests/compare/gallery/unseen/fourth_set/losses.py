"""Losses and activations: weighted cross-entropy, divergence of Gaussians, ranking, hard swish, GELU."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas


def weighted_entropy(z, weight, labels):
    return F.cross_entropy(z, labels, weight=weight.detach())


def weighted_entropy_backward(g, z, weight, labels, *, weighted=True, total=None):
    w = weight[labels]
    grad = z.softmax(1) - F.one_hot(labels, z.shape[1]).to(z.dtype)
    grad = grad * w[:, None] if weighted else grad
    return g * grad / (w.sum() if total is None else total), torch.zeros_like(weight), None


def divergence(mean, logvar):
    return 0.5 * (mean**2 + logvar.exp() - logvar - 1).sum(1)


def divergence_backward(g, mean, logvar, *, minus=1):
    return g[:, None] * mean, 0.5 * g[:, None] * (logvar.exp() - minus)


def ranking(a, b, y):
    return (0.5 - y * (a - b)).clamp(min=0)


def ranking_backward(g, a, b, y, *, masked=True):
    grad = g * y * (ranking(a, b, y) > 0) if masked else g * y
    return -grad, grad, -g * (a - b) * (ranking(a, b, y) > 0)


def hard_swish(x):
    return x * (x + 3).clamp(0, 6) / 6


def hard_swish_backward(g, x, *, doubled=True):
    middle = (2 * x + 3) / 6 if doubled else (x + 3) / 6
    return g * torch.where(x <= -3, torch.zeros_like(x), torch.where(x < 3, middle, torch.ones_like(x)))


def gelu(x):
    return F.gelu(x, approximate="tanh")


def gelu_backward(g, x, *, cubic=True):
    scale = math.sqrt(2 / math.pi)
    t = torch.tanh(scale * (x + 0.044715 * x**3))
    inner = scale * (1 + 3 * 0.044715 * x**2 * cubic)
    return g * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * inner)


OPERATIONS = [
    Formulas(
        "weighted cross-entropy",
        weighted_entropy,
        lambda: {"z": torch.randn(5, 3), "weight": 0.5 + torch.rand(3), "labels": torch.tensor([0, 1, 2, 2, 1])},
        weighted_entropy_backward,
        (
            Mistake(
                "weighted cross-entropy, number of examples",
                lambda g, z, w, y: weighted_entropy_backward(g, z, w, y, total=len(z)),
                named="divided by the number of examples instead of the sum of the weights",
                kinds=("constant factor", "another operand"),
                named_words=(r"sum|count|number of examples|div", r"times the expected"),
                located=(r"gradient of z",),
            ),
            Mistake(
                "weighted cross-entropy, weights left out",
                lambda g, z, w, y: weighted_entropy_backward(g, z, w, y, weighted=False),
                named="the class weights are missing",
                kinds=("missing term", "factor by element", "another operand"),
                named_words=(r"weight", r"factor for each (row|example)", r"mul.*left out"),
                located=(r"gradient of z",),
            ),
        ),
        options={"whole_numbers": False},
    ),
    Formulas(
        "divergence of Gaussians",
        divergence,
        lambda: {"mean": torch.randn(4, 3), "logvar": torch.randn(4, 3)},
        divergence_backward,
        (
            Mistake(
                "divergence of Gaussians, without -1",
                lambda g, m, v: divergence_backward(g, m, v, minus=0),
                named="the derivative of -logvar, -1, is missing",
                kinds=("missing term",),
                named_words=(r"sub.*missing|missing.*sub", r"-?0\.5 . incoming gradient"),
                located=(r"gradient of logvar",),
            ),
        ),
    ),
    Formulas(
        "ranking loss",
        ranking,
        lambda: {"a": torch.randn(8), "b": torch.randn(8), "y": torch.randn(8).sign()},
        ranking_backward,
        (
            Mistake(
                "ranking loss, mask ignored",
                lambda g, a, b, y: ranking_backward(g, a, b, y, masked=False),
                named="pairs whose loss is 0 get a gradient",
                kinds=("step left out", "only for some values"),
                named_words=(r"mask", r"clamp", r"output is 0"),
                located=(r"gradient of a", r"\bb\b"),
            ),
        ),
        options={"whole_numbers": False},
    ),
    Formulas(
        "hard swish",
        hard_swish,
        lambda: 3 * torch.randn(5, 6),
        hard_swish_backward,
        (
            Mistake(
                "hard swish, middle",
                lambda g, x: hard_swish_backward(g, x, doubled=False),
                named="between -3 and 3 the derivative is (x + 3) / 6 instead of (2 x + 3) / 6: a term is missing",
                kinds=("missing term", "only for some values"),
                named_words=(r"(-3|3)", r"missing"),
                located=(r"gradient of (x|input 0)", r"x|clamp|add"),
            ),
        ),
        options={"whole_numbers": False},
    ),
    Formulas(
        "GELU",
        gelu,
        lambda: torch.randn(4, 5),
        gelu_backward,
        (
            Mistake(
                "GELU, cubic term",
                lambda g, x: gelu_backward(g, x, cubic=False),
                named="the derivative of the cubic term is missing",
                kinds=("missing term",),
                named_words=(r"gelu.*missing|missing.*gelu", r"cubic|0\.0447"),
                located=(r"gradient of (x|input 0)",),
            ),
        ),
    ),
]
WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
