"""Losses: binary cross-entropy with a weight of positives, contrastive pairs, distillation."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas

POSITIVE = 3.0
MARGIN = 4.0
TEMPERATURE = 2.0


def binary(z, y):
    return -(POSITIVE * y * F.logsigmoid(z) + (1 - y) * F.logsigmoid(-z)).mean()


def binary_backward(g, z, y, *, positive=POSITIVE, total=None):
    grad = (1 - y) * z.sigmoid() - positive * y * (-z).sigmoid()
    return g * grad / (z.numel() if total is None else total), None


def pairs(a, b, same):
    d = (a - b).norm(dim=1)
    return same * d**2 + (1 - same) * (MARGIN - d).clamp(min=0) ** 2


def pairs_backward(g, a, b, same, *, apart=2, sign_of_b=-1):
    d = (a - b).norm(dim=1)
    slope = 2 * same - apart * (1 - same) * (MARGIN - d).clamp(min=0) / d
    grad = (g * slope)[:, None] * (a - b)
    return grad, sign_of_b * grad, None


def distillation(teacher, student):
    p = (teacher / TEMPERATURE).softmax(1)
    ratio = (teacher / TEMPERATURE).log_softmax(1) - (student / TEMPERATURE).log_softmax(1)
    return TEMPERATURE**2 * (p * ratio).sum(1)


def distillation_backward(g, teacher, student, *, centred=True):
    p = (teacher / TEMPERATURE).softmax(1)
    q = (student / TEMPERATURE).softmax(1)
    ratio = (teacher / TEMPERATURE).log_softmax(1) - (student / TEMPERATURE).log_softmax(1)
    mean = (p * ratio).sum(1, keepdim=True) if centred else 0
    return TEMPERATURE * g[:, None] * p * (ratio - mean), TEMPERATURE * g[:, None] * (q - p)


OPERATIONS = [
    Formulas(
        "binary cross-entropy",
        binary,
        lambda: {"z": torch.randn(6, 4), "y": torch.randint(0, 2, (6, 4))},
        binary_backward,
        (
            Mistake(
                "binary cross-entropy, positives not weighted",
                lambda g, z, y: binary_backward(g, z, y, positive=1),
                named="the weight of positive labels, 3, is missing where y = 1",
                kinds=("only for some values", "another operand", "step left out", "factor of one term"),
                named_words=(r"y (=|is|==) 1", r"0\.333|1/3|times 3\b|\b3 times|by 3\b", r"mul.*left out"),
                located=(r"gradient of z", r"\by\b|1/3|0\.333|mul"),
            ),
            Mistake(
                "binary cross-entropy, mean over rows",
                lambda g, z, y: binary_backward(g, z, y, total=len(z)),
                named="divided by the number of rows, 6, instead of the number of elements, 24",
                kinds=("constant factor",),
                named_words=(r"\b4(\.0)? times", r"times.*\b4\b", r"number of (rows|columns)", r"size of dimension"),
                located=(r"gradient of z",),
            ),
        ),
    ),
    Formulas(
        "contrastive pairs",
        pairs,
        lambda: {"a": torch.randn(7, 5), "b": torch.randn(7, 5), "same": torch.tensor([0, 1, 0, 0, 1, 1, 0])},
        pairs_backward,
        (
            Mistake(
                "contrastive pairs, factor 2 of different pairs",
                lambda g, a, b, s: pairs_backward(g, a, b, s, apart=1),
                named="the factor 2 of the square is missing for different pairs, same = 0",
                kinds=("factor of one term", "only for some values"),
                named_words=(r"same (=|is|==) 0", r"0\.5|1/2|\bhalf\b"),
                located=(r"gradient of a", r"\bb\b", r"same|pow|clamp|MARGIN"),
            ),
            Mistake(
                "contrastive pairs, sign of the second",
                lambda g, a, b, s: pairs_backward(g, a, b, s, sign_of_b=1),
                named="the gradient of b has the wrong sign: it is that of a",
                kinds=("constant factor", "swapped"),
                named_words=(r"-1 times|negative|sign", r"gradient of a\b"),
                located=(r"gradient of b",),
            ),
        ),
        options={"whole_numbers": False},
    ),
    Formulas(
        "distillation",
        distillation,
        lambda: {"teacher": torch.randn(4, 5), "student": torch.randn(4, 5)},
        distillation_backward,
        (
            Mistake(
                "distillation, mean of the ratio",
                lambda g, t, s: distillation_backward(g, t, s, centred=False),
                named="the gradient of the teacher lacks the sum over classes, from the softmax's normalisation",
                kinds=("missing term",),
                named_words=(r"missing", r"normali[sz]"),
                located=(r"gradient of teacher", r"softmax|sum|dimension 1"),
            ),
        ),
    ),
]

WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
