"""States: a mean that is tracked, a norm undone from its output, a residual block that is run backwards."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

KEEP = 0.9
SLOPE = 0.1
EPS = 1e-3


def tracked_mean(x, mean):
    mean = KEEP * mean + (1 - KEEP) * x.mean(0)
    return x - mean, mean


class TrackedMeanFunction(Function):
    @staticmethod
    def forward(ctx, x, mean):
        ctx.rows = len(x)
        return tracked_mean(x, mean)

    @staticmethod
    def backward(ctx, g, g_mean):
        to_mean = g_mean - g.sum(0)
        return g + (1 - KEEP) / ctx.rows * to_mean, KEEP * to_mean


class CentreWithEMA(Function):
    """Returns the rows minus the exponential moving average of their mean, and the new average."""

    @staticmethod
    def forward(ctx, x, running):
        new_running = running * KEEP + x.mean(dim=0) * (1 - KEEP)
        ctx.num_rows = x.size(0)
        return x - new_running, new_running

    @staticmethod
    def backward(ctx, grad_centred, grad_running):
        grad_new = grad_running - grad_centred.sum(dim=0)
        grad_x = grad_centred + grad_new * (1 - KEEP) / ctx.num_rows
        return grad_x, grad_running * KEEP


def norm_and_leak(x, gain, bias):
    centred = x - x.mean(0)
    z = centred / (centred.square().mean(0) + EPS).sqrt() * gain + bias
    return torch.where(z >= 0, z, SLOPE * z)


class NormAndLeakFunction(Function):
    @staticmethod
    def forward(ctx, x, gain, bias):
        ctx.save_for_backward(x, gain, bias)
        return norm_and_leak(x, gain, bias)

    @staticmethod
    def backward(ctx, g):
        x, gain, bias = ctx.saved_tensors
        centred = x - x.mean(0)
        deviation = (centred.square().mean(0) + EPS).sqrt()
        normed = centred / deviation
        to_z = torch.where(normed * gain + bias >= 0, g, SLOPE * g)
        to_normed = to_z * gain
        grad_x = to_normed - to_normed.mean(0) - normed * (to_normed * normed).mean(0)
        return grad_x / deviation, (to_z * normed).sum(0), to_z.sum(0)


class InPlaceABN(Function):
    """Batch norm and leaky ReLU that keep only the output for backward (Rota Bulo et al. 2018)."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        mean = x.mean(dim=0)
        var = x.var(dim=0, unbiased=False)
        inv_std = torch.rsqrt(var + EPS)
        out = (x - mean).mul_(inv_std).mul_(weight).add_(bias)
        out[out < 0] *= SLOPE
        ctx.save_for_backward(out, weight, bias, inv_std)
        return out

    @staticmethod
    def backward(ctx, grad_out):
        out, weight, bias, inv_std = ctx.saved_tensors
        negative = out < 0
        dz = torch.where(negative, grad_out * SLOPE, grad_out)
        z = torch.where(negative, out * SLOPE, out)
        xhat = (z - bias) / weight
        grad_weight = (dz * xhat).sum(dim=0)
        grad_bias = dz.sum(dim=0)
        n = out.size(0)
        grad_x = weight * inv_std * (dz - grad_bias / n - xhat * grad_weight / n)
        return grad_x, grad_weight, grad_bias


def reversible_block(x1, x2, w_f, w_g):
    y1 = x1 + torch.tanh(x2 @ w_f)
    return y1, x2 + torch.tanh(y1 @ w_g)


class ReversibleBlock(Function):
    """RevNet coupling (Gomez et al. 2017): inputs are rebuilt from the outputs in backward."""

    @staticmethod
    def forward(ctx, x1, x2, w_f, w_g):
        y1 = x1 + torch.tanh(x2.mm(w_f))
        y2 = x2 + torch.tanh(y1.mm(w_g))
        ctx.save_for_backward(y1, y2, w_f, w_g)
        return y1, y2

    @staticmethod
    def backward(ctx, dy1, dy2):
        y1, y2, w_f, w_g = ctx.saved_tensors
        g = torch.tanh(y1.mm(w_g))
        x2 = y2 - g
        f = torch.tanh(x2.mm(w_f))
        d_pre_g = dy2 * (1 - g * g)
        d_pre_f = dy1 * (1 - f * f)
        dx1 = dy1 + d_pre_g.mm(w_g.t())
        dx2 = dy2 + d_pre_f.mm(w_f.t())
        return dx1, dx2, x2.t().mm(d_pre_f), y1.t().mm(d_pre_g)


def block_inputs():
    return {
        "x1": torch.randn(4, 3),
        "x2": torch.randn(4, 3),
        "w_f": torch.randn(3, 3),
        "w_g": torch.randn(3, 3),
    }


OPERATIONS = [
    Operation(
        "mean that is tracked, old mean through the first output",
        TrackedMeanFunction,
        CentreWithEMA,
        tracked_mean,
        lambda: {"x": torch.randn(5, 3), "mean": torch.randn(3)},
        named="the old mean: its part through the centred rows is missing, only that through the new mean is there",
        kinds=("missing term", "step left out", "another operand"),
        named_words=(r"missing", r"grad_new|to_mean"),
        located=(r"gradient of (mean|running)\b",),
    ),
    Operation(
        "norm undone from its output, slope multiplied",
        NormAndLeakFunction,
        InPlaceABN,
        norm_and_leak,
        lambda: {"x": torch.randn(7, 3), "gain": 0.5 + torch.rand(3), "bias": torch.randn(3)},
        named="backward rebuilds z from the output and multiplies by the slope, where it is to divide by it",
        kinds=("only for some values", "another operand", "factor by element", "factor of one term", "step left out"),
        named_words=(r"(divi|/|square|twice).*slope|slope.*(divi|square|twice)",),
        located=(r"gradient of x\b", r"gradient of (gain|weight)\b"),
        options={"whole_numbers": False, "kinks": True},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case("residual block run backwards, first output", ReversibleBlock.apply, reversible_block, block_inputs),
        named="x2 and w_f: the first branch gets only the first output's gradient, not its total through the second",
        kinds=("missing term", "step left out", "another operand"),
        named_words=(r"missing", r"\bdx1\b", r"second output|total"),
        located=(r"gradient of x2\b", r"gradient of w_f\b"),
    ),
]
