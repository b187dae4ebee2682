"""Losses: pairs of the same label, rare labels with a shifted probability, residuals that are cut off."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

LABELS = torch.tensor([0, 1, 0, 2, 1, 0, 2])
TAU = 0.5
PRESENT = torch.tensor([[1, 0, 0, 1], [0, 0, 1, 0], [0, 1, 0, 0]], dtype=torch.bool)
SHIFT, FOCUS = 0.05, 3


def same_label_loss(z):
    n = len(LABELS)
    itself = torch.eye(n, dtype=torch.bool)
    scores = (z @ z.T / TAU).masked_fill(itself, float("-inf"))
    same = (LABELS[:, None] == LABELS) & ~itself
    wanted = torch.where(same, scores, 0).sum(1) / same.sum(1)
    return scores.logsumexp(1) - wanted


class SameLabelLossFunction(Function):
    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return same_label_loss(z)

    @staticmethod
    def backward(ctx, g):
        (z,) = ctx.saved_tensors
        itself = torch.eye(len(LABELS), dtype=torch.bool)
        same = ((LABELS[:, None] == LABELS) & ~itself).to(z)
        p = (z @ z.T / TAU).masked_fill(itself, float("-inf")).softmax(1)
        to_scores = g[:, None] * (p - same / same.sum(1, keepdim=True)) / TAU
        return (to_scores + to_scores.T) @ z


class SupConLoss(Function):
    """Supervised contrastive loss (Khosla et al. 2020, L_out), one value per anchor."""

    @staticmethod
    def forward(ctx, feats):
        y = LABELS.to(feats.device)
        sim = feats @ feats.t() / TAU
        sim.fill_diagonal_(-float("inf"))
        log_prob = sim - torch.logsumexp(sim, dim=1, keepdim=True)
        pos = y.unsqueeze(0) == y.unsqueeze(1)
        pos.fill_diagonal_(False)
        ctx.save_for_backward(feats, log_prob, pos)
        return -log_prob.masked_fill(~pos, 0).sum(dim=1) / pos.sum(dim=1)

    @staticmethod
    def backward(ctx, grad_loss):
        feats, log_prob, pos = ctx.saved_tensors
        d_sim = (log_prob.exp() - pos.to(feats.dtype)) * grad_loss.unsqueeze(1)
        d_sim = (d_sim + d_sim.t()) / TAU
        return d_sim @ feats


def shifted_loss(logits):
    p = torch.sigmoid(logits)
    shifted = (p - SHIFT).clamp(min=0)
    absent = shifted**FOCUS * torch.log(1 - shifted)
    return -torch.where(PRESENT, torch.nn.functional.logsigmoid(logits), absent).sum(1)


class AsymmetricLoss(Function):
    """ASL (Ridnik et al. 2021): negatives are shifted by a margin and focused."""

    @staticmethod
    def forward(ctx, logits):
        p = torch.sigmoid(logits)
        xs_neg = torch.clamp(p - SHIFT, min=0)
        los_pos = torch.nn.functional.logsigmoid(logits)
        los_neg = torch.log(1 - xs_neg) * xs_neg.pow(FOCUS)
        ctx.save_for_backward(p, xs_neg)
        return -torch.where(PRESENT, los_pos, los_neg).sum(dim=1)

    @staticmethod
    def backward(ctx, grad_output):
        p, xs_neg = ctx.saved_tensors
        grad_pos = p - 1
        d_neg = FOCUS * xs_neg.pow(FOCUS - 1) * torch.log(1 - xs_neg) - xs_neg.pow(FOCUS) / (1 - xs_neg)
        grad_neg = -d_neg * xs_neg * (1 - xs_neg)
        return grad_output.unsqueeze(1) * torch.where(PRESENT, grad_pos, grad_neg)


def cut_off(r, c):
    rest = (1 - (r / c) ** 2).clamp(min=0)
    return c**2 / 6 * (1 - rest**3)


class CutOffFunction(Function):
    @staticmethod
    def forward(ctx, r, c):
        ctx.save_for_backward(r, c)
        return cut_off(r, c)

    @staticmethod
    def backward(ctx, g):
        r, c = ctx.saved_tensors
        rest = (1 - (r / c) ** 2).clamp(min=0)
        of_c = c / 3 * (1 - rest**3) - rest**2 * r**2 / c
        return g * r * rest**2, (g * of_c).sum(0)


class TukeyBiweight(Function):
    @staticmethod
    def forward(ctx, res, c):
        inlier = res.abs() <= c
        u = 1 - (res / c) ** 2
        rho = c * c / 6 * (1 - u**3)
        ctx.save_for_backward(res, c, u, inlier)
        return torch.where(inlier, rho, (c * c / 6).expand_as(res))

    @staticmethod
    def backward(ctx, grad_rho):
        res, c, u, inlier = ctx.saved_tensors
        grad_rho = grad_rho.masked_fill(~inlier, 0)
        grad_res = grad_rho * res * u * u
        grad_c = grad_rho * (c / 3 * (1 - u**3) - u * u * res * res / c)
        return grad_res, grad_c.sum(dim=0)


OPERATIONS = [
    Operation(
        "pairs of the same label, number of the partners",
        SameLabelLossFunction,
        SupConLoss,
        same_label_loss,
        lambda: {"z": torch.randn(7, 3)},
        named="the target of a row is its partners over their number, and the number is left out",
        kinds=("factor of one term", "step left out", "another operand", "only at some indices", "wrong sum"),
        named_words=(r"number|count", r"\bsum", r"\bdiv|left out", r"\bpos\b"),
        located=(r"gradient of (z|feats)\b",),
    ),
    Operation(
        "residuals cut off, those outside",
        CutOffFunction,
        TukeyBiweight,
        cut_off,
        lambda: {"r": 2 * torch.randn(6, 3), "c": 1 + torch.rand(3)},
        named="c: residuals outside of c have c^2 / 6 as their loss, and give c no gradient",
        kinds=("missing term", "only for some values", "step left out", "another operand"),
        named_words=(r"missing", r"inlier|outside|mask", r"expand_as|where"),
        located=(r"gradient of c\b",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "labels with a shifted probability, derivative of the sigmoid",
            AsymmetricLoss.apply,
            shifted_loss,
            lambda: {"logits": torch.randn(3, 4)},
        ),
        named="absent labels: the sigmoid's derivative is made of the shifted probability",
        kinds=("another operand", "only at some indices"),
        named_words=(r"xs_neg|shifted|SHIFT", r"sigmoid", r"\bp\b"),
        located=(r"gradient of logits\b",),
    ),
]
