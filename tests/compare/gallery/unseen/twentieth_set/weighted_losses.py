"""Losses with weights: of two classes, of errors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right


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
