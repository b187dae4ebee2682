"""Weights of two values, a norm and an activation in one, a norm with corrections to running statistics."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

GROUPS = 2
EPS = 1e-3
RUNNING_MEAN = torch.tensor([0.3, -0.2, 0.1])
RUNNING_STD = torch.tensor([0.7, 1.4, 1.1])
MAX_SCALE, MAX_SHIFT = 3.0, 2.0


def two_valued(weight):
    inside = weight.clamp(-1, 1)
    sign = inside + (weight.sign() - inside).detach()
    return sign * weight.abs().mean(1, keepdim=True)


class TwoValuedFunction(Function):
    @staticmethod
    def forward(ctx, weight):
        ctx.save_for_backward(weight)
        return two_valued(weight)

    @staticmethod
    def backward(ctx, g):
        (weight,) = ctx.saved_tensors
        size, sign = weight.abs().mean(1, keepdim=True), weight.sign()
        through_size = sign * (g * sign).mean(1, keepdim=True)
        return torch.where(weight.abs() <= 1, g * size, 0) + through_size


class XNORWeight(Function):
    """Weights of XNOR-Net, alpha * sign(W), with a straight-through sign."""

    @staticmethod
    def forward(ctx, W):
        alpha = W.abs().mean(dim=1, keepdim=True)
        ctx.save_for_backward(W, alpha)
        return alpha * torch.sign(W)

    @staticmethod
    def backward(ctx, grad_B):
        W, alpha = ctx.saved_tensors
        n = W.size(1)
        grad_W = grad_B * alpha
        grad_W = grad_W.masked_fill(W.abs() > 1, 0)
        grad_alpha = grad_B.sum(dim=1, keepdim=True)
        return grad_W + grad_alpha * torch.sign(W) / n


def evolved(x, slope):
    grouped = x.reshape(len(x), GROUPS, -1)
    deviation = (grouped.var(2, unbiased=False, keepdim=True) + EPS).sqrt()
    active = x * torch.sigmoid(slope[:, None] * x)
    return (active.reshape(grouped.shape) / deviation).reshape(x.shape)


class EvolvedFunction(Function):
    @staticmethod
    def forward(ctx, x, slope):
        ctx.save_for_backward(x, slope)
        return evolved(x, slope)

    @staticmethod
    def backward(ctx, g):
        x, slope = ctx.saved_tensors
        grouped = x.reshape(len(x), GROUPS, -1)
        centred = grouped - grouped.mean(2, keepdim=True)
        deviation = ((centred**2).mean(2, keepdim=True) + EPS).sqrt()
        gate = torch.sigmoid(slope[:, None] * x)
        to_active = (g.reshape(grouped.shape) / deviation).reshape(x.shape)
        to_deviation = -(to_active * x * gate).reshape(grouped.shape).sum(2, keepdim=True) / deviation
        through_deviation = to_deviation * centred / (grouped.shape[2] * deviation)
        bend = gate * (1 - gate)
        grad_x = to_active * (gate + slope[:, None] * x * bend) + through_deviation.reshape(x.shape)
        return grad_x, (to_active * x**2 * bend).sum((0, 2))


class EvoNormS0(Function):
    @staticmethod
    def forward(ctx, x, v):
        n, c, length = x.shape
        xg = x.reshape(n, GROUPS, c // GROUPS, length)
        std = torch.sqrt(xg.var(dim=(2, 3), unbiased=False, keepdim=True) + EPS)
        sig = torch.sigmoid(v.view(1, -1, 1) * x)
        ctx.save_for_backward(x, v, std)
        return (x * sig).reshape(xg.shape).div(std).reshape(x.shape)

    @staticmethod
    def backward(ctx, grad_y):
        x, v, std = ctx.saved_tensors
        sig = torch.sigmoid(v.view(1, -1, 1) * x)
        shape = (x.size(0), GROUPS, -1, x.size(2))
        grad_num = (grad_y.reshape(shape) / std).reshape(x.shape)
        grad_std = -(grad_num * x * sig).reshape(shape).sum(dim=(2, 3), keepdim=True) / std
        xg = x.reshape(shape)
        m = xg.size(2) * xg.size(3)
        grad_stat = (grad_std * (xg - xg.mean(dim=(2, 3), keepdim=True)) / (m * std)).reshape(x.shape)
        dsig = sig * (1 - sig)
        grad_x = grad_num * (sig + x * dsig) + grad_stat
        grad_v = (grad_num * x * x * dsig).sum(dim=(0, 2))
        return grad_x, grad_v


def renormalized(x):
    mean, deviation = x.mean(0), (x.var(0, unbiased=False) + EPS).sqrt()
    scale = (deviation / RUNNING_STD.to(x)).clamp(1 / MAX_SCALE, MAX_SCALE).detach()
    shift = ((mean - RUNNING_MEAN.to(x)) / RUNNING_STD.to(x)).clamp(-MAX_SHIFT, MAX_SHIFT).detach()
    return (x - mean) / deviation * scale + shift


class BatchRenorm(Function):
    """Batch renormalization (Ioffe 2017); r and d get no gradient."""

    @staticmethod
    def forward(ctx, x):
        mu = x.mean(dim=0)
        sigma = torch.sqrt(x.var(dim=0, unbiased=False) + EPS)
        r = torch.clamp(sigma / RUNNING_STD.to(x), 1 / MAX_SCALE, MAX_SCALE)
        d = torch.clamp((mu - RUNNING_MEAN.to(x)) / RUNNING_STD.to(x), -MAX_SHIFT, MAX_SHIFT)
        xhat = (x - mu) / sigma
        ctx.save_for_backward(xhat, sigma, r)
        return xhat * r + d

    @staticmethod
    def backward(ctx, grad_y):
        xhat, sigma, r = ctx.saved_tensors
        n = grad_y.size(0)
        grad_xhat = grad_y * r
        mean_g = grad_xhat.sum(dim=0) / n
        mean_gx = (grad_y * xhat).sum(dim=0) / n
        return (grad_xhat - mean_g - xhat * mean_gx) / sigma


OPERATIONS = [
    Operation(
        "weights of two values, signs in the size's gradient",
        TwoValuedFunction,
        XNORWeight,
        two_valued,
        lambda: {"weight": torch.randn(4, 6)},
        named="the size's gradient is the sum of the incoming gradient without the signs that the size multiplies",
        kinds=("step left out", "another operand", "factor of one term", "missing term"),
        named_words=(r"sign",),
        located=(r"gradient of (weight|W)\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "norm and activation in one, slope of the gate",
        EvolvedFunction,
        EvoNormS0,
        evolved,
        lambda: {"x": torch.randn(3, 4, 5), "slope": 0.5 + torch.rand(4)},
        named="x: the inner derivative of the gate, the slope v, is left out",
        kinds=("step left out", "factor of one term", "missing term", "another operand"),
        named_words=(r"\bv\b|slope",),
        located=(r"gradient of x",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "norm with corrections, scale in one of the means",
            BatchRenorm.apply,
            renormalized,
            lambda: {"x": torch.randn(8, 3)},
        ),
        named="the mean with the normalized x is that of the incoming gradient, without the scale r",
        kinds=("another operand", "step left out", "factor of one term"),
        named_words=(r"\br\b|scale", r"grad_xhat"),
        located=(r"gradient of x",),
    ),
]
