"""Losses: InfoNCE, triplet margin, multi-class hinge."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

TEMPERATURE = 0.5
POSITIVE = (3, 4, 5, 0, 1, 2)  # row i and row POSITIVE[i] are two views of one example
MARGIN = 1.0


def similarities(z):
    """Similarities of all pairs of rows, without those of a row with itself."""
    scores = z @ z.t() / TEMPERATURE
    return scores.masked_fill(torch.eye(z.shape[0], dtype=torch.bool), float("-inf"))


class InfoNCE(Function):
    """Mean over the rows i of -log softmax(z z^T / T)[i, positive of i]."""

    @staticmethod
    def forward(ctx, z):
        scores = similarities(z)
        ctx.save_for_backward(z, scores.softmax(1))
        rows = torch.arange(len(POSITIVE))
        return (scores.logsumexp(1) - scores[rows, list(POSITIVE)]).mean()

    @staticmethod
    def grad_scores(ctx, g):
        _, p = ctx.saved_tensors
        target = torch.eye(p.shape[0], dtype=p.dtype)[list(POSITIVE)]
        return g * (p - target) / (p.shape[0] * TEMPERATURE)

    @staticmethod
    def backward(ctx, g):
        z, _ = ctx.saved_tensors
        grad = InfoNCE.grad_scores(ctx, g)
        return (grad + grad.t()) @ z


class InfoNCEWrong(InfoNCE):
    @staticmethod
    def backward(ctx, g):
        z, _ = ctx.saved_tensors
        return InfoNCE.grad_scores(ctx, g) @ z


def infonce(z):
    """InfoNCE of operations that PyTorch differentiates."""
    scores = similarities(z)
    return (scores.logsumexp(1) - scores[torch.arange(len(POSITIVE)), list(POSITIVE)]).mean()


class Triplet(Function):
    """max(|a - p|² - |a - n|² + margin, 0) for each row."""

    @staticmethod
    def forward(ctx, a, p, n):
        loss = (a - p).square().sum(1) - (a - n).square().sum(1) + MARGIN
        ctx.save_for_backward(a, p, n, loss > 0)
        return loss.clamp(min=0)

    @staticmethod
    def backward(ctx, g):
        a, p, n, active = ctx.saved_tensors
        g = 2 * (g * active)[:, None]
        return g * (n - p), g * (p - a), g * (a - n)


class TripletWrong(Triplet):
    @staticmethod
    def backward(ctx, g):
        a, p, n, active = ctx.saved_tensors
        g = 2 * (g * active)[:, None]
        return g * (n - p), g * (p - a), g * (n - a)


def margins(x, labels):
    """Margins x[i, j] - x[i, label i] + 1 of each class; -1 at the label."""
    margin = x - x.gather(1, labels[:, None]) + 1
    return margin.scatter(1, labels[:, None], -1.0)


class Hinge(Function):
    """Sum over the classes j other than the label of max(x[j] - x[label] + 1, 0)."""

    @staticmethod
    def forward(ctx, x, labels):
        margin = margins(x, labels)
        ctx.save_for_backward(margin > 0, labels)
        return margin.clamp(min=0).sum(1)

    @staticmethod
    def backward(ctx, g):
        active, labels = ctx.saved_tensors
        grad = active.to(g.dtype)
        grad = grad.scatter(1, labels[:, None], -grad.sum(1, keepdim=True))
        return g[:, None] * grad, None


class HingeWrong(Hinge):
    @staticmethod
    def backward(ctx, g):
        active, labels = ctx.saved_tensors
        grad = active.to(g.dtype).scatter(1, labels[:, None], -1.0)
        return g[:, None] * grad, None


OPERATIONS = [
    Operation(
        "InfoNCE",
        InfoNCE,
        InfoNCEWrong,
        infonce,
        lambda: torch.randn(6, 3),
        named="z is used twice in z z^T, and the gradient of its second use (as key) is missing",
        kinds=("missing term",),
        named_words=(
            r"(second|one|other|another) use",
            r"use[sd]? (of \w+ )?(twice|more than once|several times)",
            r"(only|part) .*\buses?\b",
            r"missing (term|part)",
            r"(term|part)s? .*(is|are) missing",
        ),
        located=(r"gradient of z",),
    ),
    Operation(
        "triplet loss",
        Triplet,
        TripletWrong,
        lambda a, p, n: ((a - p).square().sum(1) - (a - n).square().sum(1) + MARGIN).relu(),
        lambda: {"a": torch.randn(5, 3), "p": torch.randn(5, 3), "n": torch.randn(5, 3)},
        named="the gradient of n has the wrong sign",
        kinds=("constant factor",),
        named_words=(r"\bsign\b", r"negative", r"negated", r"(-|−|minus )(1|one)?\b.*expected", r"opposite"),
        located=(r"gradient of n\b",),
    ),
    Operation(
        "multi-class hinge",
        Hinge,
        HingeWrong,
        lambda x, labels: margins(x, labels).relu().sum(1),
        lambda: {"x": 2 * torch.randn(5, 4), "labels": torch.randint(4, (5,))},
        named="the element of the label is -1 instead of minus the number of active classes",
        kinds=("few elements",),
        named_words=(
            r"label",
            r"where j = labels",
            r"class of the (label|target)",
            r"index(ed)? (by|of|in) .*labels",
        ),
        located=(r"gradient of x", r"label"),
    ),
]
WRONG, RIGHT = wrong_and_right(OPERATIONS)
