"""Losses of labels: polynomial, powers of probabilities, words to avoid."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

EPSILON = 2.0


Q = 0.7


def poly_loss(logits, labels):
    p = torch.softmax(logits, 1).gather(1, labels[:, None])
    return F.cross_entropy(logits, labels) + EPSILON * (1 - p).mean()


class PolyLossFunction(Function):
    @staticmethod
    def forward(ctx, logits, labels):
        ctx.save_for_backward(logits, labels)
        return poly_loss(logits, labels)

    @staticmethod
    def backward(ctx, g):
        logits, labels = ctx.saved_tensors
        p = torch.softmax(logits, 1)
        p_label = p.gather(1, labels[:, None])
        difference = p - F.one_hot(labels, p.shape[1])
        return g * difference * (1 + EPSILON * p_label) / len(labels), None


class Poly1CrossEntropy(Function):
    """PolyLoss (Leng et al. 2022) with its first polynomial coefficient."""

    @staticmethod
    def forward(ctx, logits, target):
        logp = torch.log_softmax(logits, dim=-1)
        rows = torch.arange(target.numel(), device=target.device)
        pt = logp[rows, target].exp()
        ctx.save_for_backward(logp, target, rows)
        return (-logp[rows, target] + EPSILON * (1 - pt)).mean()

    @staticmethod
    def backward(ctx, grad_out):
        logp, target, rows = ctx.saved_tensors
        grad = logp.exp()
        pt = grad[rows, target].clone()
        grad[rows, target] -= 1
        grad[rows, target] -= EPSILON * pt * (1 - pt)
        return grad * (grad_out / target.numel()), None


def power_loss(logits, labels):
    p = torch.softmax(logits, 1).gather(1, labels[:, None]).squeeze(1)
    return (1 - p**Q) / Q


class PowerLossFunction(Function):
    @staticmethod
    def forward(ctx, logits, labels):
        ctx.save_for_backward(logits, labels)
        return power_loss(logits, labels)

    @staticmethod
    def backward(ctx, g):
        logits, labels = ctx.saved_tensors
        p = torch.softmax(logits, 1)
        scale = g[:, None] * p.gather(1, labels[:, None]) ** Q
        return scale * (p - F.one_hot(labels, p.shape[1])), None


class GeneralizedCrossEntropy(Function):
    """Noise-robust L_q loss (Zhang and Sabuncu 2018)."""

    @staticmethod
    def forward(ctx, logits, target):
        prob = logits.softmax(dim=1)
        onehot = torch.zeros_like(prob).scatter_(1, target.unsqueeze(1), 1.0)
        py = (prob * onehot).sum(dim=1)
        ctx.save_for_backward(prob, onehot, py)
        return (1.0 - py.pow(Q)) / Q

    @staticmethod
    def backward(ctx, grad_loss):
        prob, onehot, py = ctx.saved_tensors
        coef = grad_loss * py.pow(Q - 1)
        return -coef.unsqueeze(1) * (onehot - prob), None


def avoided_words(logits, words):
    p = torch.softmax(logits, -1).gather(-1, words[..., None]).squeeze(-1)
    return -torch.log1p(-p)


class AvoidedWordsFunction(Function):
    @staticmethod
    def forward(ctx, logits, words):
        ctx.save_for_backward(logits, words)
        return avoided_words(logits, words)

    @staticmethod
    def backward(ctx, g):
        logits, words = ctx.saved_tensors
        p = torch.softmax(logits, -1)
        p_word = p.gather(-1, words[..., None])
        odds = p_word / (1 - p_word)
        return g[..., None] * odds * (F.one_hot(words, p.shape[-1]) - p), None


class UnlikelihoodLoss(Function):
    """Token-level unlikelihood: -log(1 - p(candidate)), per position (Welleck et al. 2019)."""

    @staticmethod
    def forward(ctx, logits, candidates):
        probs = torch.softmax(logits, dim=-1)
        p_c = probs.gather(-1, candidates.unsqueeze(-1))
        ctx.save_for_backward(probs, candidates)
        return -(1.0 - p_c).log().squeeze(-1)

    @staticmethod
    def backward(ctx, grad_loss):
        probs, candidates = ctx.saved_tensors
        grad = probs.neg()
        one = torch.ones_like(candidates, dtype=grad.dtype).unsqueeze(-1)
        grad.scatter_add_(-1, candidates.unsqueeze(-1), one)
        return grad * grad_loss.unsqueeze(-1), None


OPERATIONS = [
    Operation(
        "polynomial cross-entropy, other classes",
        PolyLossFunction,
        Poly1CrossEntropy,
        poly_loss,
        lambda: {"logits": torch.randn(5, 4), "labels": torch.randint(0, 4, (5,))},
        named="the derivative of the label's probability is added at the label alone, not at the other classes",
        kinds=("missing term", "only at some indices", "step left out"),
        named_words=(r"other (class|elements|indices)", r"\bpt\b", r"softmax"),
        located=(r"gradient of logits",),
    ),
    Operation(
        "power loss, probability once too few",
        PowerLossFunction,
        GeneralizedCrossEntropy,
        power_loss,
        lambda: {"logits": torch.randn(4, 5), "labels": torch.randint(0, 5, (4,))},
        named="the factor p of the softmax's derivative is missing: p ** (q - 1) for p ** q",
        kinds=("factor by element", "step left out", "another operand"),
        named_words=(r"\bpy\b", r"power|exponent|pow\b|\bQ - 1"),
        located=(r"gradient of logits",),
    ),
    Operation(
        "words to avoid, derivative of the likelihood",
        AvoidedWordsFunction,
        UnlikelihoodLoss,
        avoided_words,
        lambda: {"logits": torch.randn(2, 3, 5), "words": torch.randint(0, 5, (2, 3))},
        named="the factor p / (1 - p) is missing: it is the derivative of log p",
        kinds=("factor by element", "step left out", "factor of one term"),
        named_words=(r"p_c", r"\bp / \(1", r"1(\.0)? - "),
        located=(r"gradient of logits",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
