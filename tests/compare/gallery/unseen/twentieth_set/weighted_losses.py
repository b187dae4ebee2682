"""Losses: two classes with a weight, powers of probabilities, words to avoid, weighted errors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

EPSILON = 2.0
Q = 0.7


def weighted_two_classes(x, target, weight):
    return -weight * target * F.logsigmoid(x) - (1 - target) * F.logsigmoid(-x)


class WeightedTwoClassesFunction(Function):
    @staticmethod
    def forward(ctx, x, target, weight):
        ctx.save_for_backward(x, target, weight)
        return weighted_two_classes(x, target, weight)

    @staticmethod
    def backward(ctx, g):
        x, target, weight = ctx.saved_tensors
        p = torch.sigmoid(x)
        log_p, log_other = F.logsigmoid(x), F.logsigmoid(-x)
        grad_x = g * ((1 - target) * p - weight * target * (1 - p))
        return grad_x, g * (log_other - weight * log_p), (-g * target * log_p).sum_to_size(weight.shape)


class BCEWithPosWeight(Function):
    """BCE on logits with a weight per class for the positives; targets may be soft."""

    @staticmethod
    def forward(ctx, logits, targets, pos_weight):
        logp = torch.nn.functional.logsigmoid(logits)
        logq = logp - logits
        ctx.save_for_backward(logits, targets, pos_weight)
        return -(pos_weight * targets * logp + (1 - targets) * logq)

    @staticmethod
    def backward(ctx, grad_loss):
        logits, targets, pos_weight = ctx.saved_tensors
        logp = torch.nn.functional.logsigmoid(logits)
        logq = logp - logits
        log_weight = 1 + (pos_weight - 1) * targets
        grad_logits = grad_loss * log_weight * (logits.sigmoid() - targets)
        grad_targets = grad_loss * (logq - pos_weight * logp)
        grad_pw = -(grad_loss * targets * logp).sum(0)
        return grad_logits, grad_targets, grad_pw


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


def weighted_log_cosh(prediction, target, weight):
    loss = torch.log(torch.cosh(prediction - target))
    return (weight * loss).sum() / weight.sum()


class WeightedLogCoshFunction(Function):
    @staticmethod
    def forward(ctx, prediction, target, weight):
        ctx.save_for_backward(prediction, target, weight)
        return weighted_log_cosh(prediction, target, weight)

    @staticmethod
    def backward(ctx, g):
        prediction, target, weight = ctx.saved_tensors
        error, total = prediction - target, weight.sum()
        loss = torch.log(torch.cosh(error))
        mean = (weight * loss).sum() / total
        grad_prediction = g * weight * torch.tanh(error) / total
        return grad_prediction, -grad_prediction, g * (loss - mean) / total


class LogCoshLoss(Function):
    """Weighted mean of log(cosh(error)); the weights come from a network and are trained as well."""

    @staticmethod
    def forward(ctx, y_pred, y_true, sample_weight):
        err = y_pred - y_true
        logcosh = err.abs() + F.softplus(-2 * err.abs()) - 0.6931471805599453
        norm = sample_weight.sum()
        ctx.save_for_backward(err, logcosh, sample_weight, norm)
        return (logcosh * sample_weight).sum() / norm

    @staticmethod
    def backward(ctx, grad_output):
        err, logcosh, sample_weight, norm = ctx.saved_tensors
        grad_pred = grad_output * sample_weight * err.tanh() / norm
        grad_weight = grad_output * logcosh / norm
        return grad_pred, -grad_pred, grad_weight


OPERATIONS = [
    Operation(
        "two classes with a weight, soft targets",
        WeightedTwoClassesFunction,
        BCEWithPosWeight,
        weighted_two_classes,
        lambda: {"x": torch.randn(5, 3), "target": torch.rand(5, 3), "weight": 0.5 + 3 * torch.rand(3)},
        named="weight (p - target) holds for targets 0 and 1 only, not for those between",
        kinds=("missing term", "factor by element", "another operand", "factor of one term"),
        named_words=(r"log_weight", r"pos_weight|\bweight.*(sigmoid|targets?\b)"),
        located=(r"gradient of (x|logits)\b",),
    ),
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
    Operation(
        "weighted log-cosh, sum of the weights",
        WeightedLogCoshFunction,
        LogCoshLoss,
        weighted_log_cosh,
        lambda: {"prediction": torch.randn(6), "target": torch.randn(6), "weight": 0.3 + torch.rand(6)},
        named="the derivative by a weight lacks the term of the sum of the weights below the line",
        kinds=("missing term", "step left out"),
        named_words=(r"\bnorm\b", r"sum of the weights|divisor|quotient", r"missing term|term .*missing"),
        located=(r"gradient of (weight|sample_weight)",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
