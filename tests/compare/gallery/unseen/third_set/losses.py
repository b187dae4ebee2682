"""Losses: Dice, cross-entropy with smoothed labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas


def dice(p, t):
    return 1 - (2 * (p * t).sum(1) + 1) / (p.sum(1) + t.sum(1) + 1)


def dice_backward(g, p, t, *, quotient=True, smooth=1):
    total = p.sum(1, keepdim=True) + t.sum(1, keepdim=True) + smooth
    shared = (2 * (p * t).sum(1, keepdim=True) + smooth) / total
    g = g[:, None] / total
    return g * (shared * quotient - 2 * t), g * (shared * quotient - 2 * p)


def smoothed(z, labels):
    return F.cross_entropy(z, labels, label_smoothing=0.1)


def smoothed_backward(g, z, labels, *, smoothing=0.1, count=None):
    target = F.one_hot(labels, z.shape[1]).to(z.dtype) * (1 - smoothing) + smoothing / z.shape[1]
    return g * (z.softmax(1) - target) / (count or len(z)), None


OPERATIONS = [
    Formulas(
        "Dice loss",
        dice,
        lambda: {"p": torch.rand(4, 6), "t": torch.rand(4, 6)},
        dice_backward,
        (
            Mistake(
                "Dice loss, denominator constant",
                lambda g, p, t: dice_backward(g, p, t, quotient=False),
                named="the derivative of the denominator is missing",
                kinds=("missing term",),
                named_words=(
                    r"(denominator|div|second argument|sum).*(missing|constant)",
                    r"missing.*(denominator|div|second argument)",
                    r"missing term is (one number|c ).*(row|example)",
                ),
                located=(r"gradient of p", r"\bt\b"),
            ),
            Mistake(
                "Dice loss, no smoothing in backward",
                lambda g, p, t: dice_backward(g, p, t, smooth=0),
                named="the 1 that is added to numerator and denominator is left out in backward",
                kinds=("another operand", "step left out"),
                named_words=(r"\+ 1", r"smooth", r"0(\.0)? instead of 1", r"without (add|the added)"),
                located=(r"gradient of p", r"\bt\b"),
            ),
        ),
    ),
    Formulas(
        "smoothed cross-entropy",
        smoothed,
        lambda: {"z": torch.randn(5, 4), "labels": torch.randint(4, (5,))},
        smoothed_backward,
        (
            Mistake(
                "smoothed cross-entropy, no smoothing",
                lambda g, z, labels: smoothed_backward(g, z, labels, smoothing=0),
                named="label smoothing is ignored in backward",
                kinds=("another operand", "step left out", "missing term"),
                named_words=(
                    r"smoothing",
                    r"0(\.0)? instead of 0\.1",
                    r"\bone_hot.*missing|missing.*one_hot",
                ),
                located=(r"gradient of z",),
            ),
            Mistake(
                "smoothed cross-entropy, sum",
                lambda g, z, labels: smoothed_backward(g, z, labels, count=1),
                named="not divided by the number of examples: 5 times too large",
                kinds=("constant factor",),
                named_words=(r"\b5 times", r"sum instead of the mean"),
                located=(r"gradient of z",),
            ),
        ),
    ),
]
WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
