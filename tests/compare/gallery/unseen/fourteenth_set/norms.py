"""Normalizations and moments: means of a power, groups with a gate, skewness, complex numbers with a threshold."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

EPS = 1e-2
GROUPS = 2


def power_mean(x, power):
    power = power[:, None]
    return (x**power).mean(2, keepdim=True).pow(1 / power).squeeze(2)


class PowerMeanFunction(Function):
    @staticmethod
    def forward(ctx, x, power):
        ctx.save_for_backward(x, power)
        return power_mean(x, power)

    @staticmethod
    def backward(ctx, g):
        x, power = ctx.saved_tensors
        p = power[:, None]
        mean = (x**p).mean(2)
        to_logarithm = g * power_mean(x, power)
        grad_x = (to_logarithm / mean)[:, :, None] * x ** (p - 1) / x.shape[2]
        slope = (x**p * torch.log(x)).mean(2) / (power * mean) - torch.log(mean) / power**2
        return grad_x, (to_logarithm * slope).sum(0)


class GeMPool(Function):
    @staticmethod
    def forward(ctx, x, p):
        powed = x.pow(p.view(1, -1, 1))
        avg = powed.mean(dim=-1)
        y = avg.pow(p.reciprocal())
        ctx.save_for_backward(x, p, powed, avg, y)
        return y

    @staticmethod
    def backward(ctx, grad_y):
        x, p, powed, avg, y = ctx.saved_tensors
        n = x.size(-1)
        grad_avg = grad_y * y / (p * avg)
        grad_powed = grad_avg.unsqueeze(-1) / n
        grad_x = grad_powed * p.view(1, -1, 1) * powed / x
        grad_p = (grad_powed * powed * x.log()).sum(dim=(0, 2))
        return grad_x, grad_p


def grouped(x):
    return x.reshape(x.shape[0], GROUPS, -1)


def gated_group_norm(x, slope, gain):
    spread = torch.sqrt(((grouped(x) - grouped(x).mean(2, keepdim=True)) ** 2).mean(2, keepdim=True) + EPS)
    gated = x * torch.sigmoid(slope[:, None] * x)
    return (grouped(gated) / spread).reshape(x.shape) * gain[:, None]


class GatedGroupNormFunction(Function):
    @staticmethod
    def forward(ctx, x, slope, gain):
        ctx.save_for_backward(x, slope, gain)
        return gated_group_norm(x, slope, gain)

    @staticmethod
    def backward(ctx, g):
        x, slope, gain = ctx.saved_tensors
        centred = grouped(x) - grouped(x).mean(2, keepdim=True)
        spread = torch.sqrt((centred**2).mean(2, keepdim=True) + EPS)
        gate = torch.sigmoid(slope[:, None] * x)
        gated = x * gate
        grad_gain = (g * (grouped(gated) / spread).reshape(x.shape)).sum((0, 2))
        to_gated = (grouped(g * gain[:, None]) / spread).reshape(x.shape)
        to_spread = -(grouped(to_gated) * grouped(gated)).sum(2, keepdim=True) / spread
        through_spread = (to_spread * centred / (centred.shape[2] * spread)).reshape(x.shape)
        grad_x = to_gated * (gate + slope[:, None] * gated * (1 - gate)) + through_spread
        return grad_x, (to_gated * gated * x * (1 - gate)).sum((0, 2)), grad_gain


class EvoNormS0(Function):
    @staticmethod
    def forward(ctx, x, v, gamma):
        n, c = x.shape[:2]
        xg = x.reshape(n, GROUPS, -1)
        std = (xg.var(dim=2, unbiased=False, keepdim=True) + EPS).sqrt()
        std = std.repeat_interleave(c // GROUPS, dim=1)
        gate = torch.sigmoid(v.view(1, -1, 1) * x)
        ctx.save_for_backward(x, v, gamma, std, gate)
        return x * gate / std * gamma.view(1, -1, 1)

    @staticmethod
    def backward(ctx, grad_out):
        x, v, gamma, std, gate = ctx.saved_tensors
        n, c = x.shape[:2]
        normed = x * gate / std
        grad_gamma = (grad_out * normed).sum(dim=(0, 2))
        grad_normed = grad_out * gamma.view(1, -1, 1)
        grad_num = grad_normed / std
        d_gate = x * gate * (1 - gate)
        grad_v = (grad_num * x * d_gate).sum(dim=(0, 2))
        dot = (grad_normed * normed).reshape(n, GROUPS, -1).mean(dim=2, keepdim=True)
        dot = dot.repeat_interleave(c // GROUPS, dim=1)
        grad_x = grad_num * (gate + v.view(1, -1, 1) * d_gate) - dot * x / std.square()
        return grad_x, grad_v, grad_gamma


def skewness(x):
    centred = x - x.mean(1, keepdim=True)
    return (centred**3).mean(1) / ((centred**2).mean(1) + EPS) ** 1.5


class SkewnessFunction(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return skewness(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        centred = x - x.mean(1, keepdim=True)
        second, third = (centred**2).mean(1, keepdim=True), (centred**3).mean(1, keepdim=True)
        slope = 3 * (centred**2 - second) / (second + EPS) ** 1.5 - 3 * third * centred / (second + EPS) ** 2.5
        return g[:, None] * slope / x.shape[1]


class Skew(Function):
    @staticmethod
    def forward(ctx, x):
        d = x - x.mean(dim=1, keepdim=True)
        m2 = d.square().mean(dim=1, keepdim=True) + EPS
        m3 = d.pow(3).mean(dim=1, keepdim=True)
        ctx.save_for_backward(d, m2, m3)
        return (m3 * m2.pow(-1.5)).squeeze(1)

    @staticmethod
    def backward(ctx, grad):
        d, m2, m3 = ctx.saved_tensors
        n = d.size(1)
        dm3 = 3 * d.square() / n
        dm2 = 2 * d / n
        return grad.unsqueeze(1) * (dm3 * m2.pow(-1.5) - 1.5 * m3 * m2.pow(-2.5) * dm2)


def complex_threshold(z, bias):
    return torch.relu(z.abs() + bias) * z / z.abs()


class ComplexThresholdFunction(Function):
    @staticmethod
    def forward(ctx, z, bias):
        ctx.save_for_backward(z, bias)
        return complex_threshold(z, bias)

    @staticmethod
    def backward(ctx, g):
        z, bias = ctx.saved_tensors
        unit, length = z / z.abs(), z.abs()
        active = length + bias > 0
        along = (unit.conj() * g).real
        across = g - along * unit
        grad_z = active * (along * unit + (1 + bias / length) * across)
        return grad_z, (active * along).sum(0)


class ModReLU(Function):
    @staticmethod
    def forward(ctx, z, b):
        r = z.abs()
        phase = z / r
        mask = (r + b > 0).to(r.dtype)
        ctx.save_for_backward(phase, mask)
        return mask * (r + b) * phase

    @staticmethod
    def backward(ctx, grad_out):
        phase, mask = ctx.saved_tensors
        grad_r = mask * (grad_out * phase.conj()).real
        return grad_r * phase, grad_r.sum(dim=0)


OPERATIONS = [
    Operation(
        "mean of a power, power of the root",
        PowerMeanFunction,
        GeMPool,
        power_mean,
        lambda: {"x": torch.rand(3, 4, 5) + 0.2, "power": torch.rand(4) * 2 + 1.5},
        named="power: the part of the derivative through the exponent 1 / power of the root is missing",
        kinds=("missing term",),
        named_words=(r"missing", r"constant", r"detach", r"no effect"),
        located=(r"gradient of power",),
        options={"whole_numbers": False},
    ),
    Operation(
        "groups with a gate, deviation from the mean",
        GatedGroupNormFunction,
        EvoNormS0,
        gated_group_norm,
        lambda: {"x": torch.randn(2, 4, 5) + 0.5, "slope": torch.randn(4), "gain": torch.randn(4)},
        named="x: the derivative of the deviation takes x itself, where x minus the group's mean belongs",
        kinds=("step left out", "another operand", "missing term"),
        named_words=(r"\bmean\b", r"centr", r"missing", r"constant"),
        located=(r"gradient of x",),
    ),
    Operation(
        "skewness, mean inside of the third moment",
        SkewnessFunction,
        Skew,
        skewness,
        lambda: (torch.randn(4, 6),),
        named="the derivative of the third moment lacks its part through the mean that is subtracted",
        kinds=("missing term",),
        named_words=(r"missing", r"constant", r"detach", r"no effect"),
        located=(r"gradient of (x|input 0)",),
    ),
    Operation(
        "complex numbers with a threshold, across",
        ComplexThresholdFunction,
        ModReLU,
        complex_threshold,
        lambda: {"z": torch.randn(5, 3, dtype=torch.complex64), "bias": torch.randn(3) / 2},
        named="z: the gradient has the part along z only; the part across, through the phase, is missing",
        kinds=("missing term",),
        named_words=(r"missing", r"constant", r"detach", r"no effect"),
        located=(r"gradient of z",),
        options={"whole_numbers": False, "kinks": True},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
