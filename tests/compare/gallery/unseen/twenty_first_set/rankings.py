"""Rankings: pairs of embeddings pulled together and apart, average precision made smooth."""

from __future__ import annotations

import torch
from torch.autograd import Function
from torch.nn.functional import logsigmoid, softplus

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

PULL, PUSH, LAMBDA = 2.0, 3.0, 0.5
TAU = 0.25
IDENTITY = torch.tensor([0, 1, 0, 2, 1, 0])
RELEVANT = torch.tensor([[0, 1, 0, 0, 1, 1, 0], [1, 0, 0, 1, 0, 0, 0], [0, 0, 1, 0, 0, 1, 1]], dtype=torch.bool)


def same_identity():
    same = IDENTITY[:, None] == IDENTITY
    return same & ~torch.eye(len(IDENTITY), dtype=torch.bool), ~same


def similarity_loss(s):
    near, far = same_identity()
    pulled = (torch.exp(-PULL * (s - LAMBDA)) * near).sum(1).log1p() / PULL
    return pulled + (torch.exp(PUSH * (s - LAMBDA)) * far).sum(1).log1p() / PUSH


class TwoSidedLossFunction(Function):
    @staticmethod
    def forward(ctx, s):
        ctx.save_for_backward(s)
        return similarity_loss(s)

    @staticmethod
    def backward(ctx, g):
        (s,) = ctx.saved_tensors
        near, far = same_identity()
        attract, repel = torch.exp(-PULL * (s - LAMBDA)) * near, torch.exp(PUSH * (s - LAMBDA)) * far
        grad = repel / (1 + repel.sum(1, keepdim=True)) - attract / (1 + attract.sum(1, keepdim=True))
        return g[:, None] * grad


class MultiSimilarityLoss(Function):
    @staticmethod
    def forward(ctx, sim):
        pos_mask, neg_mask = same_identity()
        pos_logits = (-PULL * (sim - LAMBDA)).masked_fill(~pos_mask, float("-inf"))
        neg_logits = (PUSH * (sim - LAMBDA)).masked_fill(~neg_mask, float("-inf"))
        ctx.save_for_backward(pos_logits, neg_logits)
        zero = sim.new_zeros(sim.size(0), 1)
        pos_loss = torch.logsumexp(torch.cat([pos_logits, zero], dim=1), dim=1) / PULL
        neg_loss = torch.logsumexp(torch.cat([neg_logits, zero], dim=1), dim=1) / PUSH
        return pos_loss + neg_loss

    @staticmethod
    def backward(ctx, grad_loss):
        pos_logits, neg_logits = ctx.saved_tensors
        has_pos = torch.isfinite(pos_logits).any(dim=1, keepdim=True)
        w_pos = torch.where(has_pos, torch.softmax(pos_logits, dim=1), torch.zeros_like(pos_logits))
        w_neg = torch.softmax(neg_logits, dim=1)
        return grad_loss[:, None] * (w_neg - w_pos)


def sigmoid_pairs_loss(image, text, log_scale, bias):
    logits = image @ text.T * log_scale.exp() + bias
    signs = 2 * torch.eye(len(image)).to(logits) - 1
    return softplus(-signs * logits).sum(1)


class SigmoidPairsFunction(Function):
    @staticmethod
    def forward(ctx, image, text, log_scale, bias):
        ctx.save_for_backward(image, text, log_scale, bias)
        return sigmoid_pairs_loss(image, text, log_scale, bias)

    @staticmethod
    def backward(ctx, g):
        image, text, log_scale, bias = ctx.saved_tensors
        scale, products = log_scale.exp(), image @ text.T
        signs = 2 * torch.eye(len(image)).to(image) - 1
        to_logits = -g[:, None] * signs * torch.sigmoid(-signs * (products * scale + bias))
        to_scale = (to_logits * products).sum() * scale
        return scale * to_logits @ text, scale * to_logits.T @ image, to_scale, to_logits.sum()


class SigLIPLoss(Function):
    """Sigmoid loss for language-image pretraining: every pair is a binary example, the diagonal is positive."""

    @staticmethod
    def forward(ctx, img_emb, txt_emb, t_prime, b):
        t = torch.exp(t_prime)
        sim = img_emb @ txt_emb.t()
        labels = -torch.ones_like(sim)
        labels.fill_diagonal_(1)
        z = labels * (t * sim + b)
        ctx.save_for_backward(img_emb, txt_emb, t, sim, labels, z)
        return -logsigmoid(z).sum(dim=-1)

    @staticmethod
    def backward(ctx, grad_out):
        img_emb, txt_emb, t, sim, labels, z = ctx.saved_tensors
        d_logits = -labels * torch.sigmoid(-z) * grad_out.unsqueeze(-1)
        d_sim = t * d_logits
        d_t = (d_logits * sim).sum()
        return d_sim @ txt_emb, d_sim.t() @ img_emb, d_t, d_logits.sum()


def smooth_average_precision(scores):
    relevant = RELEVANT.to(scores)
    before = torch.sigmoid((scores[:, None, :] - scores[:, :, None]) / TAU)
    before = before * (1 - torch.eye(scores.size(1)).to(scores))
    rank, rank_relevant = 1 + before.sum(2), 1 + (before * relevant[:, None, :]).sum(2)
    return (relevant * rank_relevant / rank).sum(1) / relevant.sum(1)


class SmoothAP(Function):
    """Average precision with ranks 1 + sum of sigmoid((s_j - s_i) / tau), for each query."""

    @staticmethod
    def forward(ctx, scores):
        n = scores.size(1)
        diff = scores.unsqueeze(1) - scores.unsqueeze(2)
        sig = torch.sigmoid(diff / TAU)
        sig.masked_fill_(torch.eye(n, dtype=torch.bool), 0)
        pos = RELEVANT.to(scores)
        all_rank = sig.sum(-1) + 1
        pos_rank = (sig * pos.unsqueeze(1)).sum(-1) + 1
        ctx.save_for_backward(sig, pos, all_rank, pos_rank)
        return (pos * pos_rank / all_rank).sum(1) / pos.sum(1)

    @staticmethod
    def backward(ctx, grad_ap):
        sig, pos, all_rank, pos_rank = ctx.saved_tensors
        weight = grad_ap.unsqueeze(1) * pos / pos.sum(1, keepdim=True)
        grad_pos_rank = weight / all_rank
        grad_all_rank = -weight * pos_rank / all_rank**2
        grad_sig = grad_all_rank.unsqueeze(2) + grad_pos_rank.unsqueeze(2) * pos.unsqueeze(1)
        grad_diff = grad_sig * sig * (1 - sig) / TAU
        return grad_diff.sum(dim=1)


OPERATIONS = [
    Operation(
        "similar and dissimilar pairs, weights of the pairs",
        TwoSidedLossFunction,
        MultiSimilarityLoss,
        similarity_loss,
        lambda: {"s": torch.randn(6, 6)},
        named="the logarithm is of 1 + the sum, and the weights are a softmax without the 1 in its denominator",
        kinds=("another operand", "missing term", "factor by element", "step left out", "wrong sum"),
        named_words=(r"softmax", r"denominator", r"zero\b|\b1 \+", r"w_(pos|neg)"),
        located=(r"gradient of (s|sim)\b",),
    ),
    Operation(
        "sigmoid of every pair, logarithm of the scale",
        SigmoidPairsFunction,
        SigLIPLoss,
        sigmoid_pairs_loss,
        lambda: {
            "image": torch.randn(4, 3),
            "text": torch.randn(4, 3),
            "log_scale": 0.4 + 0.3 * torch.randn(()),
            "bias": torch.randn(()),
        },
        named="log_scale: the gradient is that of the scale, the exponential's derivative is left out",
        kinds=("step left out", "constant factor", "another operand", "factor by element"),
        named_words=(r"\bexp", r"\bt\b|d_t", r"left out"),
        located=(r"gradient of (log_scale|t_prime)\b",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "smooth average precision, the item's own score",
            SmoothAP.apply,
            smooth_average_precision,
            lambda: {"scores": 0.5 * torch.randn(3, 7)},
        ),
        named="an item's score stands in the differences of its own rank too, with a minus, and that sum is missing",
        kinds=("missing term",),
        named_words=(r"missing", r"sum\(.*2|dim=2|transpos|other (dimension|axis)", r"grad_diff|\bdiff\b"),
        located=(r"gradient of scores\b",),
    ),
]
