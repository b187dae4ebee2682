"""Activations: a rectifier, a soft threshold with learned sharpness."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas


def rectifier(x):
    return F.relu(x)


def soft_threshold(x, threshold, sharpness):
    return torch.sigmoid(sharpness * (x - threshold))


def soft_threshold_backward(g, x, threshold, sharpness):
    y = soft_threshold(x, threshold, sharpness)
    grad = g * y * (1 - y)
    grad_x = grad * sharpness
    return grad_x, -grad_x.sum(0), (grad * (x - threshold)).sum(0)


def threshold_and_sharpness_exchanged(g, *inputs):
    grad_x, grad_threshold, grad_sharpness = soft_threshold_backward(g, *inputs)
    return grad_x, grad_sharpness, grad_threshold


OPERATIONS = [
    Formulas(
        "rectifier",
        rectifier,
        lambda: {"x": torch.randn(4, 7)},
        lambda g, x: g * (x > 0),
        (
            Mistake(
                "rectifier, guided",
                lambda g, x: g.clamp(min=0) * (x > 0),
                named="negative incoming gradients are set to 0, as guided backpropagation does",
                kinds=("not linear in the incoming gradient",),
                named_words=(r"linear", r"(negative|sign|positive).*incoming|incoming.*(negative|sign|positive)"),
                located=(r"gradient of x",),
            ),
        ),
    ),
    Formulas(
        "soft threshold",
        soft_threshold,
        lambda: {"x": torch.randn(6, 4), "threshold": torch.randn(4), "sharpness": 0.5 + 2 * torch.rand(4)},
        soft_threshold_backward,
        (
            Mistake(
                "soft threshold, gradients in another order",
                threshold_and_sharpness_exchanged,
                named="backward returns the gradients of threshold and of sharpness in the other order",
                kinds=("swapped",),
                named_words=(r"swap|exchang|order", r"gradient of (sharpness|threshold)|of another input"),
                located=(r"gradient of threshold|\bthreshold and sharpness\b", r"\bsharpness\b"),
            ),
        ),
    ),
]

WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
