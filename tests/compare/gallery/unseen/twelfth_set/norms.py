"""Normalizations: demodulated weights, rows over their mean deviation, signed roots of length 1."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

EPSILON = 1e-2


def demodulated(weight, style):
    scaled = weight[None] * style[:, None]
    return scaled * torch.rsqrt((scaled * scaled).sum(2, keepdim=True) + EPSILON)


class ModulatedWeight(Function):
    @staticmethod
    def forward(ctx, weight, style):
        w = weight.unsqueeze(0) * style.unsqueeze(1)
        demod = (w.square().sum(dim=2, keepdim=True) + EPSILON).rsqrt()
        ctx.save_for_backward(weight, style, w, demod)
        return w * demod

    @staticmethod
    def backward(ctx, grad_out):
        weight, style, w, demod = ctx.saved_tensors
        grad_demod = (grad_out * w).sum(dim=2, keepdim=True)
        grad_w = grad_out * demod
        grad_style = (grad_w * weight).sum(dim=1)
        grad_w = grad_w - grad_demod * demod.pow(3) * w
        grad_weight = (grad_w * style.unsqueeze(1)).sum(dim=0)
        return grad_weight, grad_style


def over_mean_deviation(x):
    centred = x - x.mean(1, keepdim=True)
    return centred / centred.abs().mean(1, keepdim=True)


class MeanDeviationNormFunction(Function):
    @staticmethod
    def forward(ctx, x):
        centred = x - x.mean(1, keepdim=True)
        deviation = centred.abs().mean(1, keepdim=True)
        ctx.save_for_backward(centred, deviation)
        return centred / deviation

    @staticmethod
    def backward(ctx, g):
        centred, deviation = ctx.saved_tensors
        along = (g * centred / deviation).mean(1, keepdim=True)
        grad_centred = (g - along * centred.sign()) / deviation
        return grad_centred - grad_centred.mean(1, keepdim=True)


class MADNorm(Function):
    @staticmethod
    def forward(ctx, x):
        mu = x.mean(dim=-1, keepdim=True)
        mad = (x - mu).abs().mean(dim=-1, keepdim=True)
        y = (x - mu) / mad
        ctx.save_for_backward(y, mad)
        return y

    @staticmethod
    def backward(ctx, dy):
        y, mad = ctx.saved_tensors
        n = y.shape[-1]
        d_mad = -(dy * y).sum(dim=-1, keepdim=True) / mad
        dx = dy / mad
        dx = dx - dx.mean(dim=-1, keepdim=True)
        return dx + d_mad * torch.sign(y) / n


def unit_signed_root(x):
    root = x.sign() * x.abs().sqrt()
    return root / root.norm(dim=1, keepdim=True)


class UnitSignedRootFunction(Function):
    @staticmethod
    def forward(ctx, x):
        root = x.sign() * x.abs().sqrt()
        length = root.norm(dim=1, keepdim=True)
        ctx.save_for_backward(root, length)
        return root / length

    @staticmethod
    def backward(ctx, g):
        root, length = ctx.saved_tensors
        unit = root / length
        grad_root = (g - unit * (g * unit).sum(1, keepdim=True)) / length
        return grad_root / (2 * root.abs())


def normalize_backward(grad, x, norm):
    y = x / norm
    return (grad - y * (y * grad).sum(dim=1, keepdim=True)) / norm


class BilinearPoolNorm(Function):
    @staticmethod
    def forward(ctx, x):
        u = torch.sign(x) * torch.sqrt(torch.abs(x))
        norm = u.norm(dim=1, keepdim=True)
        ctx.save_for_backward(u, norm)
        return u / norm

    @staticmethod
    def backward(ctx, grad_output):
        u, norm = ctx.saved_tensors
        slope = 0.5 / u.abs()
        return normalize_backward(grad_output * slope, u, norm)


OPERATIONS = [
    Operation(
        "rows over their mean deviation, signs not centred",
        MeanDeviationNormFunction,
        MADNorm,
        over_mean_deviation,
        lambda: (torch.randn(5, 7),),
        named="the deviation is treated as if it did not depend on the mean: the signs are not centred",
        kinds=("missing term", "step left out"),
        named_words=(r"missing", r"constant", r"detach", r"cent(re|er)", r"no effect"),
        located=(r"gradient of (x|input 0)",),
        options={"kinks": True, "whole_numbers": False},
    ),
    Operation(
        "signed roots of length 1, order of the two steps",
        UnitSignedRootFunction,
        BilinearPoolNorm,
        unit_signed_root,
        lambda: (torch.randn(5, 6).sign() * (0.2 + torch.rand(5, 6)),),
        named="the derivative of the root is applied before that of the normalization instead of after it",
        kinds=("not transposed", "another operand", "step left out", "factor of one term", "missing term"),
        named_words=(r"\border\b|before|after", r"not transposed|transpose", r"derivative of forward|forward mode"),
        located=(r"gradient of (x|input 0)",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "demodulated weights, style",
            ModulatedWeight.apply,
            demodulated,
            lambda: {"weight": torch.randn(4, 5), "style": 1 + torch.randn(3, 5) / 2},
        ),
        named="the style's gradient treats the demodulation as a constant; the weight's does not",
        kinds=("missing term", "step left out"),
        named_words=(r"missing", r"constant", r"detach", r"no effect"),
        located=(r"gradient of style",),
    ),
]
