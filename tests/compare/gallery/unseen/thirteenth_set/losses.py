"""Losses: a logarithm near zero, continuous ranked probability, the likelihood of an order."""

from __future__ import annotations

import math

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

WIDTH, BEND = 1.5, 0.4
SHIFT = WIDTH - WIDTH * math.log(1 + WIDTH / BEND)


def wing(prediction, target):
    error = (prediction - target).abs()
    return torch.where(error < WIDTH, WIDTH * torch.log1p(error / BEND), error - SHIFT).sum(1)


class WingFunction(Function):
    @staticmethod
    def forward(ctx, prediction, target):
        ctx.save_for_backward(prediction, target)
        return wing(prediction, target)

    @staticmethod
    def backward(ctx, g):
        prediction, target = ctx.saved_tensors
        error = prediction - target
        slope = torch.where(error.abs() < WIDTH, WIDTH / (BEND + error.abs()), 1)
        grad = g[:, None] * slope * error.sign()
        return grad, -grad


class WingLoss(Function):
    @staticmethod
    def forward(ctx, landmarks, truth):
        delta = landmarks - truth
        a = delta.abs()
        ctx.save_for_backward(delta)
        inner = WIDTH * torch.log(1 + a / BEND)
        return torch.where(a < WIDTH, inner, a - SHIFT).sum(dim=1)

    @staticmethod
    def backward(ctx, grad_loss):
        (delta,) = ctx.saved_tensors
        a = delta.abs()
        grad = torch.ones_like(a)
        small = a < WIDTH
        grad[small] = WIDTH / (1 + a[small] / BEND)
        grad = grad * delta.sign() * grad_loss.unsqueeze(1)
        return grad, -grad


def ranked_probability(y, mean, deviation):
    z = (y - mean) / deviation
    density = torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    return deviation * (z * torch.erf(z / math.sqrt(2)) + 2 * density - 1 / math.sqrt(math.pi))


class RankedProbabilityFunction(Function):
    @staticmethod
    def forward(ctx, y, mean, deviation):
        ctx.save_for_backward(y, mean, deviation)
        return ranked_probability(y, mean, deviation)

    @staticmethod
    def backward(ctx, g):
        y, mean, deviation = ctx.saved_tensors
        z = (y - mean) / deviation
        grad_y = g * torch.erf(z / math.sqrt(2))
        density = torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
        return grad_y, -grad_y, g * (2 * density - 1 / math.sqrt(math.pi))


class GaussianCRPS(Function):
    @staticmethod
    def forward(ctx, obs, mu, sigma):
        z = (obs - mu) / sigma
        cdf = 0.5 * (1 + torch.erf(z * 0.5**0.5))
        pdf = (-z.square() / 2).exp() * (0.5 / math.pi) ** 0.5
        score = z * (2 * cdf - 1) + 2 * pdf - math.pi**-0.5
        ctx.save_for_backward(cdf, score)
        return sigma * score

    @staticmethod
    def backward(ctx, grad):
        cdf, score = ctx.saved_tensors
        grad_obs = grad * (2 * cdf - 1)
        return grad_obs, -grad_obs, grad * score


def order_likelihood(scores):
    later = scores.flip(1).logcumsumexp(1).flip(1)
    return (later - scores).sum(1)


class OrderLikelihoodFunction(Function):
    @staticmethod
    def forward(ctx, scores):
        ctx.save_for_backward(scores)
        return order_likelihood(scores)

    @staticmethod
    def backward(ctx, g):
        (scores,) = ctx.saved_tensors
        later = scores.flip(1).logcumsumexp(1).flip(1)
        shares = torch.exp(scores[:, None, :] - later[:, :, None]).triu()
        return g[:, None] * (shares.sum(1) - 1)


class ListMLE(Function):
    @staticmethod
    def forward(ctx, scores):
        top = scores.max(dim=1, keepdim=True).values
        e = (scores - top).exp()
        tails = e.flip(1).cumsum(1).flip(1)
        ctx.save_for_backward(e, tails)
        return (tails.log() + top - scores).sum(dim=1)

    @staticmethod
    def backward(ctx, grad_out):
        e, tails = ctx.saved_tensors
        inverse = tails.reciprocal()
        weight = inverse.flip(1).cumsum(1).flip(1)
        return grad_out.unsqueeze(1) * (e * weight - 1)


OPERATIONS = [
    Operation(
        "logarithm near zero, inner derivative",
        WingFunction,
        WingLoss,
        wing,
        lambda: {"prediction": torch.randn(5, 4) * 2, "target": torch.randn(5, 4)},
        named="errors below the width: the derivative of log(1 + error / bend) lacks the factor 1 / bend",
        kinds=("only for some values", "factor by element", "step left out", "factor of one term"),
        named_words=(r"\bdiv\b", r"\b0\.4\b|\b2\.5\b", r"error.*<|<.*1\.5|where"),
        located=(r"gradient of prediction",),
    ),
    Operation(
        "ranked probability, deviation inside of the score",
        RankedProbabilityFunction,
        GaussianCRPS,
        ranked_probability,
        lambda: {"y": torch.randn(5, 4), "mean": torch.randn(5, 4), "deviation": torch.rand(5, 4) + 0.5},
        named="deviation: z is treated as a constant, though it is divided by the deviation",
        kinds=("missing term", "step left out"),
        named_words=(r"missing", r"constant", r"\bdiv\b"),
        located=(r"gradient of deviation",),
        options={"whole_numbers": False},
    ),
    Operation(
        "likelihood of an order, direction of the sums",
        OrderLikelihoodFunction,
        ListMLE,
        order_likelihood,
        lambda: (torch.randn(4, 5),),
        named="the inverse sums are added over the places from this one on, instead of those up to it",
        kinds=("another operand", "wrong sum", "not transposed", "permuted", "step left out"),
        named_words=(r"flip", r"cumsum|cumulative|logcumsumexp", r"direction|reverse|transpos"),
        located=(r"gradient of (scores|input 0)",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
