"""Activations: a sum of learned hinges, a curve with two learned knees, x times its tanh."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right


def hinged(x, slopes, places):
    hinges = torch.relu(places - x[..., None])
    return torch.relu(x) + (slopes * hinges).sum(-1)


class HingedFunction(Function):
    @staticmethod
    def forward(ctx, x, slopes, places):
        ctx.save_for_backward(x, slopes, places)
        return hinged(x, slopes, places)

    @staticmethod
    def backward(ctx, g):
        x, slopes, places = ctx.saved_tensors
        distance = places - x[..., None]
        active = g[..., None] * (distance > 0)
        to_distance = active * slopes
        return g * (x > 0) - to_distance.sum(-1), (active * distance).sum(0), to_distance.sum(0)


class APLUnit(Function):
    """Adaptive piecewise linear unit (Agostinelli et al. 2015): max(0, x) + sum_s a_s * max(0, b_s - x)."""

    @staticmethod
    def forward(ctx, x, a, b):
        h = b.unsqueeze(0) - x.unsqueeze(2)
        y = x.clamp(min=0)
        for s in range(a.size(1)):
            y = y + a[:, s] * h[:, :, s].clamp_(min=0)
        ctx.save_for_backward(x, a, h)
        return y

    @staticmethod
    def backward(ctx, grad_y):
        x, a, h = ctx.saved_tensors
        grad_x = grad_y * (x > 0)
        grad_a, grad_b = torch.zeros_like(a), torch.zeros_like(a)
        for s in range(a.size(1)):
            hinge = h[:, :, s]
            grad_a[:, s] = (grad_y * hinge).sum(0)
            d_hinge = grad_y * a[:, s] * (hinge >= 0)
            grad_b[:, s] = d_hinge.sum(0)
            grad_x = grad_x - d_hinge
        return grad_x, grad_a, grad_b


def two_knees(x, low, slope_low, high, slope_high):
    below, above = low + slope_low * (x - low), high + slope_high * (x - high)
    return torch.where(x >= high, above, torch.where(x <= low, below, x))


class TwoKneesFunction(Function):
    @staticmethod
    def forward(ctx, x, low, slope_low, high, slope_high):
        ctx.save_for_backward(x, low, slope_low, high, slope_high)
        return two_knees(x, low, slope_low, high, slope_high)

    @staticmethod
    def backward(ctx, g):
        x, low, slope_low, high, slope_high = ctx.saved_tensors
        above = (x >= high).to(x)
        below = (x <= low).to(x) * (1 - above)
        to_above, to_below = g * above, g * below
        return (
            g * (1 - above - below) + to_above * slope_high + to_below * slope_low,
            (to_below * (1 - slope_low)).sum(0),
            (to_below * (x - low)).sum(0),
            (to_above * (1 - slope_high)).sum(0),
            (to_above * (x - high)).sum(0),
        )


class SReLU(Function):
    """S-shaped rectifier (Jin et al. 2016) with its four parameters for each channel."""

    @staticmethod
    def forward(ctx, x, t_l, a_l, t_r, a_r):
        right = x >= t_r
        left = (x <= t_l) & ~right
        out = x.clone()
        out = torch.where(right, t_r + a_r * (x - t_r), out)
        out = torch.where(left, t_l + a_l * (x - t_l), out)
        ctx.save_for_backward(x, t_l, a_l, t_r, a_r, left, right)
        return out

    @staticmethod
    def backward(ctx, grad_output):
        x, t_l, a_l, t_r, a_r, left, right = ctx.saved_tensors
        zero = torch.zeros_like(grad_output)
        g_left = torch.where(left, grad_output, zero)
        g_right = torch.where(right, grad_output, zero)
        grad_x = grad_output.clone()
        grad_x = torch.where(left, grad_output * a_l, grad_x)
        grad_x = torch.where(right, grad_output * a_r, grad_x)
        grad_tl = (g_left - g_left * a_l).sum(0)
        grad_al = (g_left * (x - t_l)).sum(0)
        grad_tr = (-g_right * a_r).sum(0)
        grad_ar = (g_right * (x - t_r)).sum(0)
        return grad_x, grad_tl, grad_al, grad_tr, grad_ar


class LiSHT(Function):
    @staticmethod
    def forward(ctx, x):
        t = torch.tanh(x)
        ctx.save_for_backward(x, t)
        return x * t

    @staticmethod
    def backward(ctx, grad_output):
        x, t = ctx.saved_tensors
        sech2 = 1 - t.pow(2)
        return t + x * sech2


def knees():
    return {
        "x": 2 * torch.randn(8, 3),
        "low": -0.5 - torch.rand(3),
        "slope_low": 0.2 + torch.rand(3),
        "high": 0.5 + torch.rand(3),
        "slope_high": 0.2 + torch.rand(3),
    }


OPERATIONS = [
    Operation(
        "sum of hinges, saved after a clamp in place",
        HingedFunction,
        APLUnit,
        hinged,
        lambda: {"x": torch.randn(6, 3), "slopes": torch.randn(3, 2), "places": torch.randn(3, 2)},
        named="forward clamps the saved distances in place, so the mask >= 0 of backward keeps every element",
        kinds=("only for some values", "another operand", "missing term", "step left out"),
        named_words=(r"in.?place|clamp_", r">=? ?0|mask"),
        located=(r"gradient of (x|slopes|places|a|b)\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "curve with two knees, offset of the upper one",
        TwoKneesFunction,
        SReLU,
        two_knees,
        knees,
        named="the upper knee: its term as an offset is missing, so 1 - slope became -slope",
        kinds=("missing term", "step left out", "another operand"),
        named_words=(r"missing", r"1 - (slope|a_r)|offset"),
        located=(r"gradient of (high|t_r)\b",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "x times its tanh, derivative alone",
            LiSHT.apply,
            lambda x: x * torch.tanh(x),
            lambda: {"x": torch.randn(5, 4)},
        ),
        named="backward returns the derivative, not multiplied by the incoming gradient",
        kinds=("ignores the incoming gradient", "step left out", "another operand"),
        named_words=(r"incoming gradient|grad_output|upstream",),
        located=(r"gradient of x\b",),
    ),
]
