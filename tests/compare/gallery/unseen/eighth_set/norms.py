"""Norms: global response norm, batch norm with frozen statistics."""

from __future__ import annotations

import torch

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas

EPSILON = 0.05


def responses(x):
    """Norm of each channel, (N, C, 1), and its mean over the channels plus epsilon, (N, 1, 1)."""
    norm = x.norm(dim=2, keepdim=True)
    return norm, norm.mean(1, keepdim=True) + EPSILON


def global_response(x, gain, bias):
    norm, mean = responses(x)
    return gain[:, None] * x * norm / mean + bias[:, None] + x


def global_response_backward(g, x, gain, bias, *, quotient=True, residual=True):
    norm, mean = responses(x)
    scaled = g * gain[:, None]
    grad_ratio = (scaled * x).sum(2, keepdim=True)
    grad_norm = grad_ratio / mean
    if quotient:
        grad_norm = grad_norm - (grad_ratio * norm).mean(1, keepdim=True) / mean**2
    grad_x = scaled * norm / mean + grad_norm * x / norm
    grad_x = grad_x + g if residual else grad_x
    return grad_x, (g * x * norm / mean).sum((0, 2)), g.sum((0, 2))


def frozen(x, weight, mean, variance):
    return (x - mean) / (variance + EPSILON).sqrt() * weight


def frozen_backward(g, x, weight, mean, variance, *, training=False, power=-1.5):
    deviation = (variance + EPSILON).sqrt()
    centred = x - mean
    scaled = g * weight / deviation
    grad_x = scaled - scaled.mean(0) if training else scaled
    grad_variance = -(g * weight * centred).sum(0) / 2 * (variance + EPSILON) ** power
    return grad_x, (g * centred / deviation).sum(0), -scaled.sum(0), grad_variance


OPERATIONS = [
    Formulas(
        "global response norm",
        global_response,
        lambda: {"x": torch.randn(2, 4, 5), "gain": torch.randn(4), "bias": torch.randn(4)},
        global_response_backward,
        (
            Mistake(
                "global response norm, mean of the channels",
                lambda g, *inputs: global_response_backward(g, *inputs, quotient=False),
                named="the mean of the norms, by which each is divided, is treated as a constant",
                kinds=("missing term",),
                named_words=(r"\bdiv", r"\bmean\b", r"constant"),
                located=(r"gradient of x", r"div|mean|second argument|add"),
            ),
            Mistake(
                "global response norm, residual",
                lambda g, *inputs: global_response_backward(g, *inputs, residual=False),
                named="x is added to the result, and backward lacks that use",
                kinds=("missing term",),
                named_words=(r"\badd\b", r"missing", r"residual", r"incoming gradient"),
                located=(r"gradient of x",),
            ),
        ),
        options={"whole_numbers": False},
    ),
    Formulas(
        "frozen batch norm",
        frozen,
        lambda: {
            "x": torch.randn(6, 4),
            "weight": torch.randn(4),
            "mean": torch.randn(4),
            "variance": 0.3 + torch.rand(4),
        },
        frozen_backward,
        (
            Mistake(
                "frozen batch norm, centred as in training",
                lambda g, *inputs: frozen_backward(g, *inputs, training=True),
                named="the mean over the batch is subtracted, although the mean does not depend on x",
                kinds=("wrong sum", "summed over the batch", "another operand"),
                named_words=(
                    r"mean",
                    r"batch|between examples|other (rows|examples)|across",
                    r"surplus|too many|should (not|be 0)",
                ),
                located=(r"gradient of x",),
            ),
            Mistake(
                "frozen batch norm, power of the variance",
                lambda g, *inputs: frozen_backward(g, *inputs, power=-0.5),
                named="the gradient of variance has the power -1/2 of the variance instead of -3/2",
                kinds=("another operand", "factor by element", "step left out"),
                named_words=(
                    r"factor of its own",
                    r"\bpow",
                    r"\bdiv",
                    r"\bsqrt",
                    r"another derivative",
                    r"\bvariance\b",
                ),
                located=(r"gradient of variance",),
            ),
        ),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
