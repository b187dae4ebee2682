"""Activations: a rectifier, rectified values of which some are dropped, a soft threshold, a rectified modulus."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas

KEPT = 0.75
KEEP = torch.tensor([[1, 1, 0, 1, 1, 1, 0], [0, 1, 1, 1, 1, 0, 1], [1, 1, 1, 1, 0, 1, 1], [1, 0, 1, 0, 1, 0, 1]])


def rectifier(x):
    return F.relu(x)


def dropped(x, keep):
    return x * keep / KEPT


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


def modulus_rectifier(z, bias):
    modulus = z.abs()
    return F.relu(modulus + bias) * z / modulus


def modulus_rectifier_backward(g, z, bias, *, through_modulus=True):
    modulus = z.abs()
    phase = z / modulus
    along = (phase.conj() * g).real
    slope = (modulus + bias > 0).to(along.dtype)
    gain = F.relu(modulus + bias) / modulus
    grad_z = gain * g + (slope - gain) * along * phase if through_modulus else gain * g
    return grad_z, (slope * along).sum(0)


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
        "dropped values",
        dropped,
        lambda: {"x": torch.randn(4, 7).relu(), "keep": KEEP},
        lambda g, x, keep: (g * keep / KEPT, None),
        (
            Mistake(
                "dropped values, mask from the result",
                lambda g, x, keep: (g * (dropped(x, keep) != 0) / KEPT, None),
                named="the mask is taken from the result: kept elements of x that are 0 count as dropped",
                kinds=("only at zeros", "only for some values"),
                named_words=(r"\b(is|are|=+|at) (exactly )?(0|zeros?)\b", r"\bzeros\b"),
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
    Formulas(
        "rectifier of the modulus",
        modulus_rectifier,
        lambda: {"z": torch.randn(5, 4, dtype=torch.complex64), "bias": 0.5 * torch.randn(4)},
        modulus_rectifier_backward,
        (
            Mistake(
                "rectifier of the modulus, gain as a constant",
                lambda g, z, bias: modulus_rectifier_backward(g, z, bias, through_modulus=False),
                named="relu(|z| + bias) / |z| is treated as a constant in the gradient of z",
                kinds=("missing term",),
                named_words=(r"missing", r"constant", r"\babs\b|modulus", r"one use|second use|used twice"),
                located=(r"gradient of z",),
            ),
        ),
        options={"whole_numbers": False, "kinks": True},
    ),
]

WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
