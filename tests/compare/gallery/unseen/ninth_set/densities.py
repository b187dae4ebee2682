"""Densities: beta, and two flows, planar and by coupling."""

from __future__ import annotations

import torch

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas


def beta_density(x, a, b):
    normalizer = torch.lgamma(a + b) - torch.lgamma(a) - torch.lgamma(b)
    return (a - 1) * x.log() + (b - 1) * (1 - x).log() + normalizer


def beta_density_backward(g, x, a, b, *, common=1, last=-1):
    grad_x = g * ((a - 1) / x - (b - 1) / (1 - x))
    both = common * torch.digamma(a + b)
    grad_b = torch.log(1 + last * x) + both - torch.digamma(b)
    return grad_x, (g * (x.log() + both - torch.digamma(a))).sum(0), (g * grad_b).sum(0)


def planar(z, u, w, b):
    """Logarithm of the determinant of z + u tanh(w z + b), for each row."""
    slope = 1 - (z @ w + b).tanh() ** 2
    return (1 + slope * (u @ w)).log()


def planar_backward(g, z, u, w, b, *, both_uses=True, factor=2):
    t = (z @ w + b).tanh()
    slope, s = 1 - t**2, u @ w
    grad = g / (1 + slope * s)
    grad_s, grad_a = (grad * slope).sum(), -factor * t * slope * grad * s
    grad_w = grad_a @ z + (grad_s * u if both_uses else 0)
    return grad_a[:, None] * w, grad_s * w, grad_w, grad_a.sum()


def coupling(first, second, scale, shift):
    return second * torch.exp(first * scale) + shift


def coupling_backward(g, first, second, scale, shift, *, exponential=True):
    factor = torch.exp(first * scale)
    grad = g * second * (factor if exponential else 1)
    return grad * scale, g * factor, (grad * first).sum(0), g.sum(0)


OPERATIONS = [
    Formulas(
        "beta density",
        beta_density,
        lambda: {"x": 0.1 + 0.8 * torch.rand(5, 3), "a": 0.5 + 2 * torch.rand(3), "b": 0.5 + 2 * torch.rand(3)},
        beta_density_backward,
        (
            Mistake(
                "beta density, common term",
                lambda g, *inputs: beta_density_backward(g, *inputs, common=0),
                named="the gradients of a and b lack the term digamma(a + b)",
                kinds=("missing term",),
                named_words=(r"missing", r"digamma|lgamma", r"constant", r"a \+ b"),
                located=(r"gradient of a\b|\ba and b\b", r"\bb\b"),
            ),
            Mistake(
                "beta density, logarithm of b's gradient",
                lambda g, *inputs: beta_density_backward(g, *inputs, last=1),
                named="the gradient of b has log(1 + x) instead of log(1 - x)",
                kinds=("another operand", "factor of one term", "missing term"),
                named_words=(r"\blog\b", r"\bx\b", r"\bsub\b", r"instead of", r"\bsign\b"),
                located=(r"gradient of b",),
            ),
        ),
        options={"whole_numbers": False},
    ),
    Formulas(
        "planar flow",
        planar,
        lambda: {
            "z": torch.randn(6, 3),
            "u": 0.2 + torch.rand(3),
            "w": 0.2 + torch.rand(3),
            "b": torch.randn(()),
        },
        planar_backward,
        (
            Mistake(
                "planar flow, second use of w",
                lambda g, *inputs: planar_backward(g, *inputs, both_uses=False),
                named="w is used twice, and its gradient lacks the part through the product with u",
                kinds=("missing term",),
                named_words=(r"missing", r"one use|second use|used twice", r"constant", r"\bu\b", r"no effect"),
                located=(r"gradient of w",),
            ),
            Mistake(
                "planar flow, factor of the square",
                lambda g, *inputs: planar_backward(g, *inputs, factor=1),
                named="the derivative of tanh squared lacks the factor 2: half of the gradients of z and b",
                kinds=("constant factor", "factor of one term"),
                named_words=(r"\b0\.5\b", r"1/2", r"\bhalf\b", r"\b2\b"),
                located=(r"gradient of z|\bz\b.*\bb\b",),
            ),
        ),
        options={"whole_numbers": False},
    ),
    Formulas(
        "affine coupling",
        coupling,
        lambda: {
            "first": torch.randn(5, 4),
            "second": torch.randn(5, 4),
            "scale": torch.randn(4),
            "shift": torch.randn(4),
        },
        coupling_backward,
        (
            Mistake(
                "affine coupling, exponential",
                lambda g, *inputs: coupling_backward(g, *inputs, exponential=False),
                named="the derivative of the exponential is 1: the factor exp(first scale) is missing",
                kinds=("step left out", "another operand", "factor by element"),
                named_words=(r"\bexp\b", r"left out", r"factor of its own", r"another derivative"),
                located=(r"gradient of first|\bfirst and scale\b", r"\bscale\b"),
            ),
        ),
    ),
]

WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
