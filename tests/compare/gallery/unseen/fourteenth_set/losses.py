"""Losses: quantiles against quantiles, an angle's margin, a robust loss of any shape."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

KAPPA = 0.7
LEVELS = torch.tensor([1, 3, 5, 7]) / 8
SCALE, MARGIN = 4.0, 0.3


def quantile_huber(predicted, target):
    error = target[:, None, :] - predicted[:, :, None]
    size = error.abs()
    huber = torch.where(size <= KAPPA, error**2 / 2, KAPPA * (size - KAPPA / 2))
    side = (LEVELS.to(error)[:, None] - (error.detach() < 0).to(error)).abs()
    return (side * huber / KAPPA).mean(2).sum(1)


class QuantileHuberFunction(Function):
    @staticmethod
    def forward(ctx, predicted, target):
        ctx.save_for_backward(predicted, target)
        return quantile_huber(predicted, target)

    @staticmethod
    def backward(ctx, g):
        predicted, target = ctx.saved_tensors
        error = target[:, None, :] - predicted[:, :, None]
        side = torch.where(error < 0, 1 - LEVELS.to(g)[:, None], LEVELS.to(g)[:, None])
        to_error = g[:, None, None] * side * (error / KAPPA).clamp(-1, 1) / target.shape[1]
        return -to_error.sum(2), to_error.sum(1)


class QRHuberLoss(Function):
    @staticmethod
    def forward(ctx, theta, target):
        tau = LEVELS.to(theta)
        u = target.unsqueeze(1) - theta.unsqueeze(2)
        huber = torch.where(u.abs() <= KAPPA, 0.5 * u.square(), KAPPA * (u.abs() - 0.5 * KAPPA))
        below = (u < 0).to(theta.dtype)
        loss = (tau.view(1, -1, 1) - below).abs() * huber / KAPPA
        ctx.save_for_backward(u, below)
        return loss.mean(dim=2).sum(dim=1)

    @staticmethod
    def backward(ctx, grad_loss):
        u, below = ctx.saved_tensors
        tau = LEVELS.to(u)
        weight = (tau - below).abs()
        grad_u = grad_loss.view(-1, 1, 1) * weight * u.clamp(-KAPPA, KAPPA) / KAPPA / u.size(2)
        return -grad_u.sum(dim=2), grad_u.sum(dim=1)


def margin_logits(cosines, label):
    chosen = torch.nn.functional.one_hot(label, cosines.shape[1]).bool()
    return SCALE * torch.where(chosen, torch.cos(torch.acos(cosines) + MARGIN), cosines)


class MarginFunction(Function):
    @staticmethod
    def forward(ctx, cosines, label):
        ctx.save_for_backward(cosines, label)
        return margin_logits(cosines, label)

    @staticmethod
    def backward(ctx, g):
        cosines, label = ctx.saved_tensors
        angle = torch.acos(cosines.gather(1, label[:, None]))
        slope = torch.ones_like(cosines).scatter(1, label[:, None], torch.sin(angle + MARGIN) / torch.sin(angle))
        return SCALE * g * slope, None


class ArcFace(Function):
    @staticmethod
    def forward(ctx, cos_theta, label):
        rows = torch.arange(label.numel())
        theta = torch.acos(cos_theta[rows, label])
        logits = cos_theta.clone()
        logits[rows, label] = torch.cos(theta + MARGIN)
        ctx.save_for_backward(theta, label)
        return logits.mul_(SCALE)

    @staticmethod
    def backward(ctx, grad_logits):
        theta, label = ctx.saved_tensors
        rows = torch.arange(label.numel())
        grad = grad_logits * SCALE
        grad[rows, label] *= torch.sin(theta + MARGIN)
        return grad, None


def robust(error, shape):
    gap = 2 - shape
    return gap / shape * ((error**2 / gap + 1) ** (shape / 2) - 1)


class RobustFunction(Function):
    @staticmethod
    def forward(ctx, error, shape):
        ctx.save_for_backward(error, shape)
        return robust(error, shape)

    @staticmethod
    def backward(ctx, g):
        error, shape = ctx.saved_tensors
        gap = 2 - shape
        inside = error**2 / gap + 1
        power = inside ** (shape / 2)
        outer = -2 / shape**2 * (power - 1)
        inner = gap / shape * power * (torch.log(inside) / 2 + shape / 2 * error**2 / (gap**2 * inside))
        return g * error * power / inside, (g * (outer + inner)).sum(0)


class BarronLoss(Function):
    @staticmethod
    def forward(ctx, x, alpha):
        b = 2 - alpha
        base = x.square() / b + 1
        powed = base.pow(alpha / 2)
        ctx.save_for_backward(x, alpha, base, powed)
        return b / alpha * (powed - 1)

    @staticmethod
    def backward(ctx, grad_loss):
        x, alpha, base, powed = ctx.saved_tensors
        b = 2 - alpha
        grad_x = grad_loss * x * base.pow(alpha / 2 - 1)
        d_factor = -2 / alpha.square()
        d_powed = 0.5 * powed * base.log()
        grad_alpha = grad_loss * (d_factor * (powed - 1) + b / alpha * d_powed)
        return grad_x, grad_alpha.sum(dim=0)


OPERATIONS = [
    Operation(
        "quantiles against quantiles, levels of the target",
        QuantileHuberFunction,
        QRHuberLoss,
        quantile_huber,
        lambda: {"predicted": torch.randn(3, 4), "target": torch.randn(3, 4)},
        named="the levels are laid along the target's quantiles, where forward lays them along the predicted ones",
        kinds=("another operand", "transposed", "not transposed", "permuted", "wrong sum", "swapped"),
        named_words=(r"transpos", r"dimension", r"broadcast", r"permut|order of|swap|exchang", r"LEVELS|tau"),
        located=(r"gradient of predicted", r"gradient of target"),
    ),
    Operation(
        "margin of an angle, inner derivative",
        MarginFunction,
        ArcFace,
        margin_logits,
        lambda: {"cosines": torch.rand(4, 5) * 1.6 - 0.8, "label": torch.randint(0, 5, (4,))},
        named="the label's logit: the derivative of acos, division by the angle's sine, is left out",
        kinds=("step left out", "only at some indices", "factor by element", "only for some values"),
        named_words=(r"\bsin\b|acos|arccos", r"label|index"),
        located=(r"gradient of (cosines|input 0)",),
        options={"whole_numbers": False},
    ),
    Operation(
        "robust loss, shape inside of the power",
        RobustFunction,
        BarronLoss,
        robust,
        lambda: {"error": torch.randn(6, 3) * 1.5, "shape": torch.rand(3) + 0.5},
        named="shape: the part of the derivative through 2 - shape in the base of the power is missing",
        kinds=("missing term",),
        named_words=(r"missing", r"constant", r"detach", r"no effect"),
        located=(r"gradient of shape",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
