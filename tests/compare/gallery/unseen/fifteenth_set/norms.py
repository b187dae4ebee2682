"""Normalizations and comparisons: masked rows, a tanh in place of a norm, similarity of two signals."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

EPS = 0.05
C1, C2 = 0.1, 0.2
VALID = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]])


def masked_norm(x, weight, bias):
    valid = VALID[:, :, None].to(x)
    mean = (valid * x).sum((0, 1)) / valid.sum()
    variance = (valid * (x - mean) ** 2).sum((0, 1)) / valid.sum()
    return valid * ((x - mean) / torch.sqrt(variance + EPS) * weight + bias)


class MaskedNormFunction(Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return masked_norm(x, weight, bias)

    @staticmethod
    def backward(ctx, g):
        x, weight = ctx.saved_tensors
        valid = VALID.bool()
        kept, to_kept = x[valid], g[valid]
        deviation = torch.sqrt(kept.var(0, correction=0) + EPS)
        normal = (kept - kept.mean(0)) / deviation
        to_normal = to_kept * weight
        to_x = torch.zeros_like(x)
        to_x[valid] = (to_normal - to_normal.mean(0) - normal * (to_normal * normal).mean(0)) / deviation
        return to_x, (to_kept * normal).sum(0), to_kept.sum(0)


class MaskedBatchNorm(Function):
    @staticmethod
    def forward(ctx, x, gamma, beta):
        m = VALID.to(x.dtype).unsqueeze(-1)
        count = m.sum()
        mu = (x * m).sum(dim=(0, 1)) / count
        xc = (x - mu) * m
        invstd = torch.rsqrt(xc.square().sum(dim=(0, 1)) / count + EPS)
        xhat = xc * invstd
        ctx.save_for_backward(m, xhat, invstd, gamma)
        return xhat * gamma + beta * m

    @staticmethod
    def backward(ctx, grad_y):
        m, xhat, invstd, gamma = ctx.saved_tensors
        grad_y = grad_y * m
        grad_gamma = (grad_y * xhat).sum(dim=(0, 1))
        grad_beta = grad_y.sum(dim=(0, 1))
        dxhat = grad_y * gamma
        mean_d = dxhat.mean(dim=(0, 1))
        mean_dx = (dxhat * xhat).mean(dim=(0, 1))
        grad_x = m * invstd * (dxhat - mean_d - xhat * mean_dx)
        return grad_x, grad_gamma, grad_beta


def bounded_layer(x, slope, gain, bias):
    return gain * torch.tanh(slope * x) + bias


class BoundedLayerFunction(Function):
    @staticmethod
    def forward(ctx, x, slope, gain, bias):
        ctx.save_for_backward(x, slope, gain)
        return bounded_layer(x, slope, gain, bias)

    @staticmethod
    def backward(ctx, g):
        x, slope, gain = ctx.saved_tensors
        result = torch.tanh(slope * x)
        to_product = g * gain * (1 - result**2)
        return to_product * slope, (to_product * x).sum(), (g * result).sum(0), g.sum(0)


class DynamicTanh(Function):
    @staticmethod
    def forward(ctx, x, alpha, gamma, beta):
        t = torch.tanh(alpha * x)
        ctx.save_for_backward(x, t, alpha, gamma)
        return torch.addcmul(beta, gamma, t)

    @staticmethod
    def backward(ctx, grad):
        x, t, alpha, gamma = ctx.saved_tensors
        d_beta = grad.sum(dim=0)
        grad = grad * gamma
        grad = grad * (1 - t * t)
        d_alpha = torch.sum(grad * x)
        d_gamma = torch.sum(grad * t, dim=0)
        return grad * alpha, d_alpha, d_gamma, d_beta


def similarity(x, y):
    mean_x, mean_y = x.mean(1), y.mean(1)
    away_x, away_y = x - mean_x[:, None], y - mean_y[:, None]
    light = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    contrast = 2 * (away_x * away_y).mean(1) + C2
    return light * contrast / ((away_x**2).mean(1) + (away_y**2).mean(1) + C2)


class SimilarityFunction(Function):
    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return similarity(x, y)

    @staticmethod
    def backward(ctx, g):
        x, y = ctx.saved_tensors
        n = x.shape[1]
        means = x.mean(1, keepdim=True), y.mean(1, keepdim=True)
        away = x - means[0], y - means[1]
        under_light = means[0] ** 2 + means[1] ** 2 + C1
        under_contrast = (away[0] ** 2 + away[1] ** 2).mean(1, keepdim=True) + C2
        light = (2 * means[0] * means[1] + C1) / under_light
        contrast = (2 * (away[0] * away[1]).mean(1, keepdim=True) + C2) / under_contrast
        grads = []
        for own, other in ((0, 1), (1, 0)):
            of_light = 2 * (means[other] - light * means[own]) / under_light
            of_contrast = 2 * (away[other] - contrast * away[own]) / under_contrast
            grads.append(g[:, None] * (of_light * contrast + light * of_contrast) / n)
        return tuple(grads)


class SSIM(Function):
    @staticmethod
    def forward(ctx, x, y):
        mx, my = x.mean(dim=1, keepdim=True), y.mean(dim=1, keepdim=True)
        xc, yc = x - mx, y - my
        A1, B1 = 2 * mx * my + C1, mx.square() + my.square() + C1
        A2 = 2 * (xc * yc).mean(dim=1, keepdim=True) + C2
        B2 = (xc.square() + yc.square()).mean(dim=1, keepdim=True) + C2
        ctx.save_for_backward(mx, my, xc, yc, A1, B1, A2, B2)
        return (A1 * A2 / (B1 * B2)).squeeze(1)

    @staticmethod
    def backward(ctx, grad_out):
        mx, my, xc, yc, A1, B1, A2, B2 = ctx.saved_tensors
        n = xc.size(1)
        g = grad_out.unsqueeze(1)
        lum, cs = A1 / B1, A2 / B2
        dlum_x = 2 * my / B1 - A1 * 2 * mx / B1
        dlum_y = 2 * mx / B1 - A1 * 2 * my / B1
        dcs_x = 2 * yc / B2 - 2 * xc * A2 / B2**2
        dcs_y = 2 * xc / B2 - 2 * yc * A2 / B2**2
        grad_x = g * (dlum_x * cs + lum * dcs_x) / n
        grad_y = g * (dlum_y * cs + lum * dcs_y) / n
        return grad_x, grad_y


OPERATIONS = [
    Operation(
        "norm of valid rows, number of all rows",
        MaskedNormFunction,
        MaskedBatchNorm,
        masked_norm,
        lambda: {"x": torch.randn(3, 5, 2), "weight": torch.randn(2), "bias": torch.randn(2)},
        named="x: the two means of backward are divided by all 15 rows, where the 9 valid ones belong",
        kinds=("factor of one term", "wrong sum", "another operand"),
        named_words=(r"\b0\.6\b|3 ?/ ?5|9 ?/ ?15", r"(mean|sum) (is|over)", r"number of|count|mask|valid"),
        located=(r"gradient of x",),
    ),
    Operation(
        "tanh in place of a norm, gradient under one name",
        BoundedLayerFunction,
        DynamicTanh,
        bounded_layer,
        lambda: {
            "x": torch.randn(5, 3),
            "slope": 0.5 + torch.rand(()),
            "gain": torch.randn(3),
            "bias": torch.randn(3),
        },
        named="gain: the gradient inside of the tanh is taken, where the incoming one belongs: a name reused",
        kinds=("another operand", "step left out", "factor by element"),
        named_words=(r"incoming|\bgrad\b", r"gamma|gain", r"1 - t|tanh"),
        located=(r"gradient of (gain|gamma)",),
    ),
    Operation(
        "similarity of two signals, square of the divisor",
        SimilarityFunction,
        SSIM,
        similarity,
        lambda: {"x": torch.randn(3, 5) + 0.7, "y": torch.randn(3, 5) + 0.7},
        named="the light's second part is divided by B1, where its square belongs",
        kinds=("step left out", "another operand", "factor of one term"),
        named_words=(r"\bB1\b|\blum\b|light", r"divi(ded|sion)|divisor|quotient"),
        located=(r"gradient of x", r"gradient of y"),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
