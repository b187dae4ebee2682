"""Losses: Huber, focal, pinball."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

DELTA, TAU = 0.5, 0.3


class Huber(Function):
    """d² / 2 for |d| <= delta, else delta (|d| - delta / 2), for each element of d = x - target."""

    @staticmethod
    def forward(ctx, x, target):
        d = x - target
        ctx.save_for_backward(d)
        return torch.where(d.abs() <= DELTA, d * d / 2, DELTA * (d.abs() - DELTA / 2))

    @staticmethod
    def backward(ctx, g):
        (d,) = ctx.saved_tensors
        grad = g * d.clamp(-DELTA, DELTA)
        return grad, -grad


class HuberWrong(Huber):
    @staticmethod
    def backward(ctx, g):
        (d,) = ctx.saved_tensors
        grad = g * torch.where(d.abs() <= DELTA, d, d.sign())
        return grad, -grad


def huber(x, target):
    """Huber loss of operations that PyTorch differentiates."""
    d = x - target
    return torch.where(d.abs() <= DELTA, d * d / 2, DELTA * (d.abs() - DELTA / 2))


class Focal(Function):
    """-(1 - p)² log p, with p the probability of the label, for logits and labels (N, C)."""

    @staticmethod
    def forward(ctx, logits, labels):
        sign = (2 * labels - 1).to(logits.dtype)
        p = (sign * logits).sigmoid()
        ctx.save_for_backward(sign, p)
        return -((1 - p) ** 2) * p.log()

    @staticmethod
    def backward(ctx, g):
        sign, p = ctx.saved_tensors
        return g * sign * (1 - p) ** 2 * (2 * p * p.log() - (1 - p)), None


class FocalWrong(Focal):
    @staticmethod
    def backward(ctx, g):
        sign, p = ctx.saved_tensors
        return -g * sign * (1 - p) ** 3, None


def focal(logits, labels):
    """Focal loss of operations that PyTorch differentiates."""
    p = ((2 * labels - 1).to(logits.dtype) * logits).sigmoid()
    return -((1 - p) ** 2) * p.log()


class Pinball(Function):
    """Mean of tau d where d = target - x is at least 0, else of (tau - 1) d."""

    @staticmethod
    def forward(ctx, x, target):
        d = target - x
        ctx.save_for_backward(d >= 0)
        return torch.where(d >= 0, TAU * d, (TAU - 1) * d).mean()

    @staticmethod
    def grad_d(ctx, g):
        (positive,) = ctx.saved_tensors
        g = g / positive.numel()
        return torch.where(positive, TAU * g, (TAU - 1) * g)

    @staticmethod
    def backward(ctx, g):
        grad = Pinball.grad_d(ctx, g)
        return -grad, grad


class PinballWrong(Pinball):
    @staticmethod
    def backward(ctx, g):
        grad = Pinball.grad_d(ctx, torch.ones_like(g))
        return -grad, grad


def pinball(x, target):
    """Pinball loss of operations that PyTorch differentiates."""
    d = target - x
    return torch.where(d >= 0, TAU * d, (TAU - 1) * d).mean()


OPERATIONS = [
    Operation(
        "Huber loss",
        Huber,
        HuberWrong,
        huber,
        lambda: {"x": torch.randn(4, 5), "target": torch.randn(4, 5)},
        named="where |x - target| > 1/2, the factor delta = 1/2 is missing: twice the expected gradient there",
        kinds=("constant factor",),
        named_words=(
            r"(2 times|twice|double|factor (of )?2\b|times 2\b|2 ?[·×*])",
            r"(output|loss|x - target|difference|\|)\b.*(>|≥|above|beyond|exceed)",
            r"delta",
        ),
        located=(r"gradient of x|gradients of x", r">|≥|above|beyond|exceed|large"),
    ),
    Operation(
        "focal loss",
        Focal,
        FocalWrong,
        focal,
        lambda: {"logits": torch.randn(5, 3), "labels": torch.randint(2, (5, 3))},
        named="the factor (1 - p)² is treated as a constant: its derivative is missing",
        kinds=("missing term",),
        named_words=(
            r"missing (term|part)",
            r"(term|part)s? .*(is|are) missing",
            r"detached|constant",
            r"(derivative|factor|slope|coefficient|ratio)s?\b.*(each|every|per) element",
            r"(each|every) element.*(factor|derivative|slope|coefficient|ratio)",
        ),
        located=(r"gradient of logits",),
    ),
    Operation(
        "pinball loss",
        Pinball,
        PinballWrong,
        pinball,
        lambda: {"x": torch.randn(4, 5), "target": torch.randn(4, 5)},
        named="the incoming gradient is ignored",
        kinds=("ignores the incoming gradient", "not linear in the incoming gradient"),
        named_words=(
            r"(incoming gradient|\bg\b).*(ignored|not used|no effect|does not|all ones)",
            r"(ignores|independent of|not depend on|not use|correct only if) .*(incoming gradient|\bg\b)",
        ),
        located=(r"\bx\b", r"target"),
    ),
]
WRONG, RIGHT = wrong_and_right(OPERATIONS)
