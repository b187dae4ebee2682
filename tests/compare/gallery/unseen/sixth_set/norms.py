"""Norms: an epsilon beside the deviation, rows of a learned length, layer norm over two dimensions."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas

EPS = 0.3


def deviation(x):
    return ((x - x.mean(1, keepdim=True)) ** 2).mean(1, keepdim=True).sqrt()


def normalize(x):
    return (x - x.mean(1, keepdim=True)) / (deviation(x) + EPS)


def normalize_backward(g, x, *, eps_twice=False):
    sigma = deviation(x)
    outer = sigma + EPS
    y = (x - x.mean(1, keepdim=True)) / outer
    inner = outer if eps_twice else sigma
    return (g - g.mean(1, keepdim=True)) / outer - y / inner * (g * y).mean(1, keepdim=True)


def lengthen(x, length):
    return length * x / x.norm(dim=1, keepdim=True)


def lengthen_backward(g, x, length, *, keepdim=True):
    norm = x.norm(dim=1, keepdim=True)
    direction = x / norm
    along = (g * direction).sum(1, keepdim=keepdim)
    return length * (g - direction * along) / norm, along.sum()


def layer_norm(x, w, b):
    return F.layer_norm(x, w.shape, w, b)


def layer_norm_backward(g, x, w, b, *, dims=(1, 2), averaged=False):
    mean = x.mean((1, 2), keepdim=True)
    rstd = ((x - mean) ** 2).mean((1, 2), keepdim=True).add(1e-5).rsqrt()
    xhat = (x - mean) * rstd
    gx = g * w
    grad = (gx - gx.mean(dims, keepdim=True) - xhat * (gx * xhat).mean(dims, keepdim=True)) * rstd
    return grad, (g * xhat).mean(0) if averaged else (g * xhat).sum(0), g.sum(0)


OPERATIONS = [
    Formulas(
        "rows with an epsilon beside the deviation",
        normalize,
        lambda: {"x": torch.randn(4, 6)},
        normalize_backward,
        (
            Mistake(
                "rows with an epsilon beside the deviation, epsilon twice",
                lambda g, x: normalize_backward(g, x, eps_twice=True),
                named="the derivative of the square root divides by sigma + eps instead of sigma",
                kinds=("another operand", "step left out", "factor of one term"),
                named_words=(r"sqrt", r"\badd\b", r"\beps", r"\b0\.3\b", r"factor for each row"),
                located=(r"gradient of x", r"sqrt|add|deviation|mean|row|div"),
            ),
        ),
        options={"whole_numbers": False},
    ),
    Formulas(
        "rows of a learned length",
        lengthen,
        lambda: {"x": torch.randn(4, 4), "length": torch.tensor(1.7)},
        lengthen_backward,
        (
            Mistake(
                "rows of a learned length, dimension not kept",
                lambda g, x, length: lengthen_backward(g, x, length, keepdim=False),
                named="keepdim is missing: the sum of row j is used in column j instead of row j",
                kinds=("transposed", "another operand", "wrong sum", "missing term", "permuted"),
                named_words=(r"keepdim", r"broadcast", r"transpos", r"exchang", r"other rows|between rows"),
                located=(r"gradient of x", r"sum|norm|row|column|dimension"),
            ),
        ),
        options={"whole_numbers": False},
    ),
    Formulas(
        "layer norm over two dimensions",
        layer_norm,
        lambda: {"x": torch.randn(4, 3, 5), "w": 0.5 + torch.rand(3, 5), "b": torch.randn(3, 5)},
        layer_norm_backward,
        (
            Mistake(
                "layer norm over two dimensions, mean over the batch",
                lambda g, *inputs: layer_norm_backward(g, *inputs, averaged=True),
                named="the gradient of w is the mean over the batch of 4 instead of the sum",
                kinds=("constant factor", "wrong sum", "not summed over the batch"),
                named_words=(r"1/4|0\.25", r"\bmean\b"),
                located=(r"gradient of w",),
            ),
            Mistake(
                "layer norm over two dimensions, means of one",
                lambda g, *inputs: layer_norm_backward(g, *inputs, dims=2),
                named="the means in backward are over the last dimension only, instead of the last two",
                kinds=("wrong sum", "missing term"),
                named_words=(r"(sum|mean|norm).*dimension", r"between rows|other rows|across"),
                located=(r"gradient of x", r"dimension|between|across"),
            ),
        ),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
