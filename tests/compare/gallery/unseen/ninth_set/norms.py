"""Norms: divisive normalization of channels, layer norm with a scale for each example."""

from __future__ import annotations

import torch

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas

EPSILON = 0.1


def divisive(x, beta, gamma):
    return x / (beta + x**2 @ gamma.mT).sqrt()


def divisive_backward(g, x, beta, gamma, *, transposed=True):
    divisor = (beta + x**2 @ gamma.mT).sqrt()
    grad_sum = -g * x / (2 * divisor**3)
    grad_x = 2 * x * (grad_sum @ (gamma if transposed else gamma.mT))
    return grad_x + g / divisor, grad_sum.sum(0), grad_sum.mT @ x**2


def normalized(x):
    centred = x - x.mean(2, keepdim=True)
    return centred / (centred.square().mean(2, keepdim=True) + EPSILON).sqrt()


def modulated_norm(x, scale, shift):
    return normalized(x) * (1 + scale[:, None]) + shift[:, None]


def modulated_norm_backward(g, x, scale, shift, *, one=1, saved_input=False):
    y = normalized(x)
    deviation = (x.var(2, correction=0, keepdim=True) + EPSILON).sqrt()
    gy = g * (one + scale[:, None])
    grad_x = (gy - gy.mean(2, keepdim=True) - y * (gy * y).mean(2, keepdim=True)) / deviation
    return grad_x, (g * (x if saved_input else y)).sum(1), g.sum(1)


OPERATIONS = [
    Formulas(
        "divisive normalization",
        divisive,
        lambda: {"x": torch.randn(5, 4), "beta": 0.5 + torch.rand(4), "gamma": 0.1 + torch.rand(4, 4)},
        divisive_backward,
        (
            Mistake(
                "divisive normalization, weights not transposed",
                lambda g, *inputs: divisive_backward(g, *inputs, transposed=False),
                named="the sum over the channels uses gamma transposed: forward's product in place of its transpose",
                kinds=("not transposed", "transposed", "another operand"),
                named_words=(r"transpos", r"\bgamma\b.*exchang"),
                located=(r"gradient of x",),
            ),
        ),
        options={"whole_numbers": False},
    ),
    Formulas(
        "layer norm with a scale for each example",
        modulated_norm,
        lambda: {"x": torch.randn(3, 4, 6) + 1, "scale": torch.randn(3, 6), "shift": torch.randn(3, 6)},
        modulated_norm_backward,
        (
            Mistake(
                "layer norm with a scale for each example, scale without 1",
                lambda g, *inputs: modulated_norm_backward(g, *inputs, one=0),
                named="forward multiplies by 1 + scale, and the gradient of x by scale",
                kinds=("another operand", "step left out", "missing term", "factor of one term"),
                named_words=(r"\badd\b", r"\bscale\b", r"\b1 \+|\+ 1\b", r"missing"),
                located=(r"gradient of x",),
            ),
            Mistake(
                "layer norm with a scale for each example, saved input",
                lambda g, *inputs: modulated_norm_backward(g, *inputs, saved_input=True),
                named="the gradient of scale uses x instead of the normalized x",
                kinds=("another operand", "step left out"),
                named_words=(r"\bx\b", r"left out", r"\bdiv\b|\bsub\b", r"before|normali[sz]"),
                located=(r"gradient of scale",),
            ),
        ),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
