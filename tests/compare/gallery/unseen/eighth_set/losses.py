"""Losses: soft targets, matching pairs, Charbonnier, Tversky, the logarithm of the hyperbolic cosine."""

from __future__ import annotations

import torch

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas

TEMPERATURE, EPSILON = 0.4, 0.5
OF_POSITIVES, OF_NEGATIVES = 0.3, 0.7  # Tversky's weights of false positives and of false negatives


def soft_targets(logits, target):
    return -(target * logits.log_softmax(1)).sum(1).mean()


def soft_targets_backward(g, logits, target, *, summed=True, count=None):
    log_p = logits.log_softmax(1)
    count = len(logits) if count is None else count
    mass = target.sum(1, keepdim=True) if summed else 1
    return g / count * (log_p.exp() * mass - target), -g / len(logits) * log_p


def matching(z, other):
    logits = z @ other.mT / TEMPERATURE
    return (logits.logsumexp(1) - logits.diagonal()).mean()


def matching_backward(g, z, other, *, divided=True, transposed=True):
    p = (z @ other.mT / TEMPERATURE).softmax(1)
    grad = g * (p - torch.eye(len(z), dtype=z.dtype)) / len(z)
    grad = grad / TEMPERATURE if divided else grad
    return grad @ other, (grad.mT if transposed else grad) @ z


def charbonnier(a, b):
    return ((a - b) ** 2 + EPSILON**2).sqrt().mean(1)


def charbonnier_backward(g, a, b, *, epsilon=True, sign=-1):
    d = a - b
    slope = d / (d**2 + EPSILON**2).sqrt() if epsilon else d.sign()
    grad = g[:, None] / a.shape[1] * slope
    return grad, sign * grad.sum(0)


def tversky_divisor(p, target):
    hits = (p * target).sum(1)
    return hits + OF_POSITIVES * (p * (1 - target)).sum(1) + OF_NEGATIVES * ((1 - p) * target).sum(1)


def tversky(p, target):
    return 1 - (p * target).sum(1) / tversky_divisor(p, target)


def tversky_backward(g, p, target, *, positives=OF_POSITIVES, negatives=OF_NEGATIVES):
    target = target.to(p.dtype)
    hits = (p * target).sum(1, keepdim=True)
    divisor = tversky_divisor(p, target)[:, None]
    of_divisor = target + positives * (1 - target) - negatives * target
    return g[:, None] * (hits * of_divisor / divisor**2 - target / divisor), None


def log_cosh(a, b):
    return (a - b).cosh().log().sum(1)


def log_cosh_backward(g, a, b):
    grad = g[:, None] * (a - b).tanh()
    return grad, -grad


OPERATIONS = [
    Formulas(
        "soft targets",
        soft_targets,
        lambda: {"logits": torch.randn(4, 6), "target": 0.1 + torch.rand(4, 6)},
        soft_targets_backward,
        (
            Mistake(
                "soft targets, as if they summed to one",
                lambda g, logits, target: soft_targets_backward(g, logits, target, summed=False),
                named="softmax minus target: the probabilities lack the factor target.sum(1), which is not 1",
                kinds=("step left out", "another operand", "factor of one term", "missing term"),
                named_words=(r"\bsum\b", r"\btarget\b", r"\bmul\b", r"missing"),
                located=(r"gradient of logits",),
            ),
            Mistake(
                "soft targets, mean over all elements",
                lambda g, logits, target: soft_targets_backward(g, logits, target, count=logits.numel()),
                named="divided by all 24 elements instead of the 4 rows",
                kinds=("constant factor",),
                named_words=(r"1/6", r"0\.166", r"\b6\b"),
                located=(r"gradient of logits",),
            ),
        ),
    ),
    Formulas(
        "matching pairs",
        matching,
        lambda: {"z": torch.randn(5, 3), "other": torch.randn(5, 3)},
        matching_backward,
        (
            Mistake(
                "matching pairs, temperature left out",
                lambda g, z, other: matching_backward(g, z, other, divided=False),
                named="the division by the temperature 0.4 is missing",
                kinds=("constant factor", "step left out"),
                named_words=(r"\b0\.4\b", r"\b2\.5\b", r"2/5", r"\bdiv\b"),
                located=(r"gradient of z", r"\bother\b"),
            ),
            Mistake(
                "matching pairs, logits not transposed",
                lambda g, z, other: matching_backward(g, z, other, transposed=False),
                named="the gradient of the logits is not transposed in the gradient of other",
                kinds=("not transposed", "transposed", "another operand"),
                named_words=(r"transpos", r"exchang"),
                located=(r"gradient of other",),
            ),
        ),
    ),
    Formulas(
        "Charbonnier loss",
        charbonnier,
        lambda: {"a": torch.randn(4, 6), "b": torch.randn(6)},
        charbonnier_backward,
        (
            Mistake(
                "Charbonnier loss, epsilon left out",
                lambda g, a, b: charbonnier_backward(g, a, b, epsilon=False),
                named="epsilon is missing under the root in backward: the sign of a - b",
                kinds=("step left out", "another operand", "factor by element"),
                named_words=(r"\badd\b", r"\bsign\b", r"factor of its own", r"another derivative", r"0\.25\b"),
                located=(r"gradient of a", r"\bb\b"),
            ),
            Mistake(
                "Charbonnier loss, sign of the second",
                lambda g, a, b: charbonnier_backward(g, a, b, sign=1),
                named="the gradient of b has the wrong sign",
                kinds=("constant factor",),
                named_words=(r"\bsign\b", r"[-−]1\b", r"negat"),
                located=(r"gradient of b",),
            ),
        ),
    ),
    Formulas(
        "Tversky loss",
        tversky,
        lambda: {"p": 0.1 + 0.8 * torch.rand(4, 7), "target": torch.tensor([[1, 0, 1, 1, 0, 0, 1]] * 4)},
        tversky_backward,
        (
            Mistake(
                "Tversky loss, weights exchanged",
                lambda g, p, target: tversky_backward(g, p, target, positives=OF_NEGATIVES, negatives=OF_POSITIVES),
                named="backward exchanges the weights 0.3 of false positives and 0.7 of false negatives",
                kinds=("factor of one term", "factor by element", "another operand", "only for some values"),
                named_words=(r"\b0\.[37]\b", r"exchang|swap", r"\b2\.33", r"\b0\.42", r"\btarget\b", r"factor"),
                located=(r"gradient of p",),
            ),
        ),
        options={"whole_numbers": False},
    ),
    Formulas(
        "logarithm of cosh",
        log_cosh,
        lambda: {"a": torch.randn(5, 4), "b": torch.randn(5, 4)},
        log_cosh_backward,
        (
            Mistake(
                "logarithm of cosh, incoming gradient",
                lambda g, a, b: log_cosh_backward(torch.ones_like(g), a, b),
                named="the incoming gradient is ignored, as if it were 1",
                kinds=("ignores the incoming gradient",),
                named_words=(r"incoming gradient",),
                located=(r"gradient of a", r"\bb\b"),
            ),
        ),
    ),
]

WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
