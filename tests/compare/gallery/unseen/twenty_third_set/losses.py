"""Losses: pairs in order of relevance, and answers that people prefer."""

from __future__ import annotations

import torch
from torch.autograd import Function
from torch.nn.functional import logsigmoid, softplus

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

BETA = 0.5


def relevance() -> dict[str, torch.Tensor]:
    """Draw scores of 6 documents and their relevance, which has ties."""
    return {"scores": torch.randn(6), "label": torch.tensor([0, 2, 1, 0, 1, 2])[torch.randperm(6)]}


def ordered_pairs(scores, label):
    better = label[:, None] > label[None, :]
    loss = softplus(scores[None, :] - scores[:, None])
    return (loss * better).sum() / better.sum()


class OrderedPairsFunction(Function):
    @staticmethod
    def forward(ctx, scores, label):
        better = label[:, None] > label[None, :]
        difference = scores[None, :] - scores[:, None]
        ctx.save_for_backward(difference, better)
        return (softplus(difference) * better).sum() / better.sum()

    @staticmethod
    def backward(ctx, g):
        difference, better = ctx.saved_tensors
        to_difference = g * torch.sigmoid(difference) * better / better.sum()
        return to_difference.sum(0) - to_difference.sum(1), None


class RankNetLoss(Function):
    """Mean over pairs (i, j) with label_i > label_j of log(1 + exp(-(s_i - s_j)))."""

    @staticmethod
    def forward(ctx, scores, labels):
        s_diff = scores.unsqueeze(1) - scores.unsqueeze(0)
        pairs = labels.unsqueeze(1) > labels.unsqueeze(0)
        num_pairs = pairs.sum()
        loss = softplus(-s_diff)[pairs].sum() / num_pairs
        ctx.save_for_backward(s_diff, pairs, num_pairs)
        return loss

    @staticmethod
    def backward(ctx, grad_loss):
        s_diff, pairs, num_pairs = ctx.saved_tensors
        lambdas = torch.zeros_like(s_diff)
        lambdas[pairs] = -torch.sigmoid(-s_diff[pairs])
        grad_scores = lambdas.sum(dim=1)
        return grad_loss * grad_scores / num_pairs, None


def log_probabilities() -> dict[str, torch.Tensor]:
    """Draw log-probabilities of the tokens of chosen and rejected answers, and of a reference's answers."""
    tokens = {key: -3 * torch.rand(3, 5) for key in ("chosen", "rejected")}
    sums = {key: -8 * torch.rand(3) for key in ("ref_chosen", "ref_rejected")}
    lengths = torch.tensor([[5, 3, 4], [2, 5, 4]])
    masks = torch.arange(5) < lengths[:, :, None]
    return tokens | sums | {"mask_chosen": masks[0], "mask_rejected": masks[1]}


def preferred(chosen, rejected, ref_chosen, ref_rejected, mask_chosen, mask_rejected):
    gain = (chosen * mask_chosen).sum(1) - ref_chosen
    loss = (rejected * mask_rejected).sum(1) - ref_rejected
    return -logsigmoid(BETA * (gain - loss)).mean()


class PreferredFunction(Function):
    @staticmethod
    def forward(ctx, chosen, rejected, ref_chosen, ref_rejected, mask_chosen, mask_rejected):
        gain = (chosen * mask_chosen).sum(1) - ref_chosen
        loss = (rejected * mask_rejected).sum(1) - ref_rejected
        margin = BETA * (gain - loss)
        ctx.save_for_backward(margin, mask_chosen, mask_rejected)
        return softplus(-margin).mean()

    @staticmethod
    def backward(ctx, g):
        margin, mask_chosen, mask_rejected = ctx.saved_tensors
        to_gain = -g * BETA * torch.sigmoid(-margin) / len(margin)
        each = to_gain[:, None]
        return each * mask_chosen, -each * mask_rejected, -to_gain, to_gain, None, None


class DPOLoss(Function):
    """Direct preference optimization: -log sigmoid(beta * (log-ratio of chosen - log-ratio of rejected))."""

    @staticmethod
    def forward(ctx, pi_chosen, pi_rejected, ref_chosen, ref_rejected, mask_c, mask_r):
        logratio_c = (pi_chosen * mask_c).sum(-1) - ref_chosen
        logratio_r = (pi_rejected * mask_r).sum(-1) - ref_rejected
        logits = BETA * (logratio_c - logratio_r)
        ctx.save_for_backward(logits, mask_c, mask_r)
        return -logsigmoid(logits).mean()

    @staticmethod
    def backward(ctx, grad_output):
        logits, mask_c, mask_r = ctx.saved_tensors
        coef = grad_output * BETA * torch.sigmoid(logits) / logits.numel()
        grad_c = -coef.unsqueeze(-1) * mask_c
        grad_r = coef.unsqueeze(-1) * mask_r
        return grad_c, grad_r, coef, -coef, None, None


OPERATIONS = [
    Operation(
        "pairs in order of relevance, better one of a pair",
        OrderedPairsFunction,
        RankNetLoss,
        ordered_pairs,
        relevance,
        named="only the better of two documents gets a gradient; the sum over dimension 0 is to be subtracted",
        kinds=("missing term", "step left out"),
        named_words=(r"missing|left out", r"sum\(.*- .*sum\("),
        located=(r"gradient of scores\b",),
    ),
    Operation(
        "preferred answers, sigmoid of the margin",
        PreferredFunction,
        DPOLoss,
        preferred,
        log_probabilities,
        named="-logsigmoid's derivative is -sigmoid(-margin); the minus in the sigmoid is missing",
        kinds=("another operand", "factor by element", "step left out", "factor of one term"),
        named_words=(r"sigmoid\(-|-logits|neg", r"logsigmoid|log_sigmoid", r"1 - .*sigmoid"),
        located=(r"gradient of (chosen|rejected|ref_chosen|ref_rejected)\b",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
