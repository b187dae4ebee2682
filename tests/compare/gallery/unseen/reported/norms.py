"""Reported mistakes in normalizations and means."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

EPS = 1e-5


def pre_norm(x, residual):
    total = residual + x
    return total / total.norm(dim=-1, keepdim=True), total


class PreNormFunction(Function):
    @staticmethod
    def forward(ctx, x, residual):
        y, total = pre_norm(x, residual)
        ctx.save_for_backward(y, total)
        return y, total

    @staticmethod
    def backward(ctx, g, g_total):
        y, total = ctx.saved_tensors
        through = (g - y * (g * y).sum(-1, keepdim=True)) / total.norm(dim=-1, keepdim=True)
        return through + g_total, through + g_total


class PreNorm(Function):
    @staticmethod
    def forward(ctx, x, residual):
        residual_out = residual + x
        inverse = residual_out.norm(dim=-1, keepdim=True).reciprocal()
        out = residual_out * inverse
        ctx.save_for_backward(out, inverse)
        return out, residual_out

    @staticmethod
    def backward(ctx, dout, dresidual_out):
        out, inverse = ctx.saved_tensors
        d = dresidual_out + dout
        d = (d - out * (d * out).sum(-1, keepdim=True)) * inverse
        return d, d


def batch_norm(x, scale, shift):
    return F.batch_norm(x, None, None, scale, shift, True, 0.1, EPS)


class BatchNormFunction(Function):
    @staticmethod
    def forward(ctx, x, scale, shift):
        ctx.save_for_backward(x, scale)
        return batch_norm(x, scale, shift)

    @staticmethod
    def backward(ctx, g):
        x, scale = ctx.saved_tensors
        inverse = (x.var(0, unbiased=False) + EPS).rsqrt()
        y = (x - x.mean(0)) * inverse
        gy = g * scale
        return inverse * (gy - gy.mean(0) - y * (gy * y).mean(0)), (g * y).sum(0), g.sum(0)


class BatchNorm4(Function):
    @staticmethod
    def forward(ctx, x, g, b):
        mu = x.mean(0)
        ivar = 1 / torch.sqrt(((x - mu) ** 2).mean(0) + EPS)
        ctx.save_for_backward(x, g, mu, ivar)
        return (x - mu) * ivar * g + b

    @staticmethod
    def backward(ctx, dy):
        x, g, mu, ivar = ctx.saved_tensors
        m = len(x)
        x_mu = x - mu
        dyivar = dy * ivar
        dg = (x_mu * dyivar).sum(0)
        db = dy.sum(0)
        dy = g * dy
        dsigma2 = -0.5 * (dyivar * x_mu * ivar**2).sum(0)
        dmu = -dyivar.sum(0) - 2 * dsigma2 * x_mu.sum(0) / m
        return dyivar + dsigma2 * 2 * x_mu / m + dmu / m, dg, db


def row_means(x):
    return x.mean(1)


class RowMeansFunction(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.columns = x.shape[1]
        return row_means(x)

    @staticmethod
    def backward(ctx, g):
        return g[:, None].expand(-1, ctx.columns) / ctx.columns


class MeanOverDimension(Function):
    @staticmethod
    def forward(ctx, tensor):
        out = tensor.mean(1)
        ctx.shape = tensor.shape
        ctx.size = out.numel()
        return out

    @staticmethod
    def backward(ctx, upstream):
        return (upstream / ctx.size).unsqueeze(1).expand(ctx.shape)


def norm_swish(x):
    y = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + EPS).sqrt()
    return y * torch.sigmoid(y)


def norm_backward(g, y, inverse):
    return inverse * (g - g.mean(1, keepdim=True) - y * (g * y).mean(1, keepdim=True))


class NormSwishFunction(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return norm_swish(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        inverse = (x.var(1, unbiased=False, keepdim=True) + EPS).rsqrt()
        y = (x - x.mean(1, keepdim=True)) * inverse
        s = torch.sigmoid(y)
        return norm_backward(g * (s + y * s * (1 - s)), y, inverse)


def swish_backward(grad_output, x):
    s = torch.sigmoid(x)
    return grad_output * (s + x * s * (1 - s))


class FusedNormActivation(Function):
    @staticmethod
    def forward(ctx, inputs):
        mean = inputs.mean(1, keepdim=True)
        inverse = ((inputs - mean).square().mean(1, keepdim=True) + EPS).rsqrt()
        normed = (inputs - mean) * inverse
        ctx.save_for_backward(inputs, mean, inverse)
        return normed * torch.sigmoid(normed)

    @staticmethod
    def backward(ctx, grad_output):
        inputs, mean, inverse = ctx.saved_tensors
        effective = swish_backward(grad_output, inputs)
        return norm_backward(effective, (inputs - mean) * inverse, inverse)


OPERATIONS = [
    Operation(
        "residual before a norm, sum before the norm's backward",
        PreNormFunction,
        PreNorm,
        pre_norm,
        lambda: (torch.randn(5, 4), torch.randn(5, 4)),
        named="the residual's gradient is added before the norm's backward, not after it (Dao-AILab/quack #53)",
        kinds=(
            "another operand",
            "missing term",
            "change of the source",
            "wrong intermediate value",
            "factor of one term",
        ),
        named_words=(r"dresidual_out", r"output 1|second output", r"norm|div"),
        located=(r"gradient of x",),
        options={"whole_numbers": False},
    ),
    Operation(
        "batch norm, scale after the product",
        BatchNormFunction,
        BatchNorm4,
        batch_norm,
        lambda: {"x": torch.randn(6, 3), "scale": torch.rand(3) + 0.5, "shift": torch.randn(3)},
        named="x's gradient lacks the scale: the product with it comes too late (denizyuret/Knet.jl #288)",
        kinds=("step left out", "factor by element", "constant factor"),
        named_words=(r"scale|weight",),
        located=(r"gradient of x",),
        options={"whole_numbers": False},
    ),
    Operation(
        "mean over a dimension, size of the result",
        RowMeansFunction,
        MeanOverDimension,
        row_means,
        lambda: (torch.randn(6, 4),),
        named="the divisor is the size of the result, not the number of columns (pocketpy/cTensor #24)",
        kinds=("constant factor",),
        named_words=(r"6|rows|2/3|0\.66", r"columns|shape\[1\]"),
        located=(r"gradient of x",),
    ),
    Operation(
        "norm and swish, argument of the swish",
        NormSwishFunction,
        FusedNormActivation,
        norm_swish,
        lambda: (torch.randn(5, 4) * 2 + 0.5,),
        named="swish's derivative is taken at the norm's argument, not at its result (ooples/AiDotNet.Tensors #187)",
        kinds=("another operand", "step left out"),
        named_words=(r"x is used|inputs|left out",),
        located=(r"gradient of x",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
