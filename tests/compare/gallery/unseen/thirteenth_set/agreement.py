"""Agreement with targets: concordance of rows, evidence of classes."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right


def disagreement(x, y):
    mx, my = x.mean(1), y.mean(1)
    cx, cy = x - mx[:, None], y - my[:, None]
    return 1 - 2 * (cx * cy).mean(1) / ((cx**2).mean(1) + (cy**2).mean(1) + (mx - my) ** 2)


class ConcordanceLoss(Function):
    @staticmethod
    def forward(ctx, x, y):
        mx, my = x.mean(dim=1, keepdim=True), y.mean(dim=1, keepdim=True)
        cov = ((x - mx) * (y - my)).mean(dim=1, keepdim=True)
        total = x.var(dim=1, unbiased=False, keepdim=True) + y.var(dim=1, unbiased=False, keepdim=True)
        total = total + (mx - my).square()
        ctx.save_for_backward(x - mx, y - my, cov, total)
        return (1 - 2 * cov / total).squeeze(1)

    @staticmethod
    def backward(ctx, grad):
        xc, yc, cov, total = ctx.saved_tensors
        n = xc.shape[1]
        scale = -2 * grad.unsqueeze(1) / (n * total)
        ratio = 2 * cov / total
        return scale * (yc - ratio * xc), scale * (xc - ratio * yc)


def evidence_error(evidence, target):
    alpha = evidence + 1
    total = alpha.sum(1, keepdim=True)
    p = alpha / total
    return ((target - p) ** 2 + p * (1 - p) / (total + 1)).sum(1)


class EvidenceErrorFunction(Function):
    @staticmethod
    def forward(ctx, evidence, target):
        ctx.save_for_backward(evidence, target)
        return evidence_error(evidence, target)

    @staticmethod
    def backward(ctx, g):
        evidence, target = ctx.saved_tensors
        total = (evidence + 1).sum(1, keepdim=True)
        p = (evidence + 1) / total
        to_p = 2 * (p - target) + (1 - 2 * p) / (total + 1)
        to_total = -(p * (1 - p)).sum(1, keepdim=True) / (total + 1) ** 2
        grad_evidence = (to_p - (to_p * p).sum(1, keepdim=True)) / total + to_total
        return g[:, None] * grad_evidence, g[:, None] * 2 * (target - p)


class EvidentialMSE(Function):
    @staticmethod
    def forward(ctx, evidence, onehot):
        alpha = evidence + 1
        strength = alpha.sum(dim=-1, keepdim=True)
        prob = alpha / strength
        err = (onehot - prob) ** 2
        var = prob * (1 - prob) / (strength + 1)
        ctx.save_for_backward(prob, strength, onehot)
        return (err + var).sum(dim=-1)

    @staticmethod
    def backward(ctx, grad_output):
        prob, strength, onehot = ctx.saved_tensors
        g = grad_output.unsqueeze(-1)
        g_prob = g * (2 * (prob - onehot) + (1 - 2 * prob) / (strength + 1))
        g_evidence = (g_prob - (g_prob * prob).sum(dim=-1, keepdim=True)) / strength
        return g_evidence, 2 * g * (onehot - prob)


OPERATIONS = [
    Operation(
        "error of evidence, total under the variance",
        EvidenceErrorFunction,
        EvidentialMSE,
        evidence_error,
        lambda: {"evidence": torch.rand(4, 3) * 3, "target": torch.eye(3)[torch.randint(3, (4,))]},
        named="the total in the variance's denominator is treated as a constant",
        kinds=("missing term",),
        named_words=(r"missing", r"constant", r"detach", r"no effect"),
        located=(r"gradient of evidence",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "concordance, distance of the means",
            ConcordanceLoss.apply,
            disagreement,
            lambda: {"x": torch.randn(3, 5), "y": torch.randn(3, 5) + 0.5},
            whole_numbers=False,
        ),
        named="x and y: the part of the derivative through the means' difference in the denominator is missing",
        kinds=("missing term",),
        named_words=(r"missing", r"constant", r"detach", r"no effect"),
        located=(r"gradient of x", r"gradient of y"),
    ),
]
