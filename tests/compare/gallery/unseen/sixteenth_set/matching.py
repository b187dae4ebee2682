"""Matching: pairs that choose each other, attention around a place."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

WIDTH = 1.2


def mutual_choice(scores):
    return scores.softmax(1) * scores.softmax(2)


class MutualChoiceFunction(Function):
    @staticmethod
    def forward(ctx, scores):
        ctx.save_for_backward(scores)
        return mutual_choice(scores)

    @staticmethod
    def backward(ctx, g):
        (scores,) = ctx.saved_tensors
        both = g * mutual_choice(scores)
        of_columns = scores.softmax(1) * both.sum(1, keepdim=True)
        of_rows = scores.softmax(2) * both.sum(2, keepdim=True)
        return 2 * both - of_columns - of_rows


def softmax_backward(grad, prob):
    return prob * (grad - (grad * prob).sum(dim=-1, keepdim=True))


class DualSoftmax(Function):
    """Match probabilities of LoFTR: softmax over both images."""

    @staticmethod
    def forward(ctx, sim):
        p0 = torch.softmax(sim, dim=1)
        p1 = torch.softmax(sim, dim=2)
        ctx.save_for_backward(p0, p1)
        return p0 * p1

    @staticmethod
    def backward(ctx, grad_conf):
        p0, p1 = ctx.saved_tensors
        grad_sim = softmax_backward(grad_conf * p1, p0)
        grad_sim = grad_sim + softmax_backward(grad_conf * p0, p1)
        return grad_sim


def around_a_place(scores, place, values):
    steps = torch.arange(scores.shape[1], dtype=scores.dtype)
    window = torch.exp(-((steps - place[:, None]) ** 2) / (2 * WIDTH**2))
    return ((scores.softmax(1) * window)[:, :, None] * values).sum(1)


class AroundAPlaceFunction(Function):
    @staticmethod
    def forward(ctx, scores, place, values):
        ctx.save_for_backward(scores, place, values)
        return around_a_place(scores, place, values)

    @staticmethod
    def backward(ctx, g):
        scores, place, values = ctx.saved_tensors
        distance = torch.arange(scores.shape[1], dtype=scores.dtype) - place[:, None]
        window = torch.exp(-(distance**2) / (2 * WIDTH**2))
        shares = scores.softmax(1)
        to_weights = (g[:, None] * values).sum(2)
        each = to_weights * shares * window
        grad_place = (each * distance).sum(1) / WIDTH**2
        grad_scores = each - shares * each.sum(1, keepdim=True)
        return grad_scores, grad_place, (shares * window)[:, :, None] * g[:, None]


class LocalAttention(Function):
    """local-p attention of Luong et al. 2015 with a predicted position."""

    @staticmethod
    def forward(ctx, score, p_t, memory):
        s = torch.arange(score.size(1), device=score.device).to(score)
        diff = p_t.unsqueeze(1) - s
        gauss = torch.exp(-diff.pow(2) / (2 * WIDTH * WIDTH))
        align = torch.softmax(score, dim=1)
        ctx.save_for_backward(memory, diff, gauss, align)
        return torch.bmm((align * gauss).unsqueeze(1), memory).squeeze(1)

    @staticmethod
    def backward(ctx, grad_context):
        memory, diff, gauss, align = ctx.saved_tensors
        weight = align * gauss
        grad_memory = weight.unsqueeze(2) * grad_context.unsqueeze(1)
        grad_weight = torch.bmm(memory, grad_context.unsqueeze(2)).squeeze(2)
        grad_score = softmax_backward(grad_weight * gauss, align)
        grad_gauss = grad_weight * align
        grad_p = (grad_gauss * gauss * diff / (WIDTH * WIDTH)).sum(dim=1)
        return grad_score, grad_p, grad_memory


OPERATIONS = [
    Operation(
        "pairs that choose each other, dimension of the softmax",
        MutualChoiceFunction,
        DualSoftmax,
        mutual_choice,
        lambda: {"scores": torch.randn(2, 4, 5)},
        named="the derivative of the softmax over dimension 1 sums over the last dimension",
        kinds=("wrong sum", "another operand"),
        named_words=(r"dimension|\bdim\b|over (rows|columns)", r"\bsum\b"),
        located=(r"gradient of (scores|sim)",),
    ),
    Operation(
        "attention around a place, sign of the distance",
        AroundAPlaceFunction,
        LocalAttention,
        around_a_place,
        lambda: {"scores": torch.randn(3, 5), "place": 4 * torch.rand(3), "values": torch.randn(3, 5, 2)},
        named="place: the derivative of the negative square has the wrong sign",
        kinds=("constant factor",),
        named_words=(r"sign", r"-1\b", r"negat"),
        located=(r"gradient of (place|p_t)",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
