"""Series: normalized and given back with its moments, differences of a fractional order, scaled errors."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right


def normalized_series(x, weight):
    mean, std = x.mean(1, keepdim=True), (x.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
    return (x - mean) / std * weight, mean, std


class NormalizedSeriesFunction(Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return normalized_series(x, weight)

    @staticmethod
    def backward(ctx, g, grad_mean, grad_std):
        x, weight = ctx.saved_tensors
        length = x.shape[1]
        mean, std = x.mean(1, keepdim=True), (x.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
        unit, scaled = (x - mean) / std, g * weight
        centred = scaled - scaled.mean(1, keepdim=True) - unit * (scaled * unit).mean(1, keepdim=True)
        return centred / std + (grad_mean + grad_std * unit) / length, (g * unit).sum((0, 1))


class RevIN(Function):
    """Reversible instance normalization: (B, T, C) series, and the statistics that undo it on the forecast."""

    @staticmethod
    def forward(ctx, x, affine_weight):
        mu = x.mean(dim=1, keepdim=True)
        sigma = torch.sqrt(x.var(dim=1, keepdim=True, unbiased=False) + 1e-5)
        xhat = (x - mu) / sigma
        ctx.save_for_backward(xhat, sigma, affine_weight)
        return xhat * affine_weight, mu, sigma

    @staticmethod
    def backward(ctx, grad_out, grad_mu=None, grad_sigma=None):
        xhat, sigma, affine_weight = ctx.saved_tensors
        grad_weight = (grad_out * xhat).flatten(0, 1).sum(dim=0)
        gx = grad_out * affine_weight
        gx = gx - gx.mean(dim=1, keepdim=True) - xhat * (gx * xhat).mean(dim=1, keepdim=True)
        return gx / sigma, grad_weight


def fractional_difference(x, order):
    weights = [torch.ones_like(order)]
    for k in range(1, x.shape[1]):
        weights.append(-weights[-1] * (order - k + 1) / k)
    return torch.stack([sum(w * x[:, t - k] for k, w in enumerate(weights[: t + 1])) for t in range(x.shape[1])], 1)


class FractionalDifferenceFunction(Function):
    @staticmethod
    def forward(ctx, x, order):
        ctx.save_for_backward(x, order)
        return fractional_difference(x, order)

    @staticmethod
    def backward(ctx, g):
        x, order = ctx.saved_tensors
        weight, slope = torch.ones_like(order), torch.zeros_like(order)
        grad_x, grad_order = g.clone(), torch.zeros_like(order)
        for k in range(1, x.shape[1]):
            slope = -(slope * (order - k + 1) + weight) / k
            weight = -weight * (order - k + 1) / k
            grad_x[:, :-k] += weight * g[:, k:]
            grad_order += slope * (g[:, k:] * x[:, :-k]).sum()
        return grad_x, grad_order


class FracDiff(Function):
    """Fractional differencing (1 - L)^d of each row, all lags, with a trainable d."""

    @staticmethod
    def forward(ctx, x, d):
        T = x.shape[1]
        w = [torch.ones_like(d)]
        for k in range(1, T):
            w.append(-w[k - 1] * (d - k + 1) / k)
        w = torch.stack(w)
        y = torch.zeros_like(x)
        for k in range(T):
            y[:, k:] += w[k] * x[:, : T - k]
        ctx.save_for_backward(x, w)
        return y

    @staticmethod
    def backward(ctx, grad_y):
        x, w = ctx.saved_tensors
        T = x.shape[1]
        grad_x = torch.zeros_like(x)
        dw = torch.zeros_like(w)
        for k in range(T):
            grad_x[:, : T - k] += w[k] * grad_y[:, k:]
            if k > 0:
                dw[k] = -w[k - 1] / k
        lagged = torch.stack([(grad_y[:, k:] * x[:, : T - k]).sum() for k in range(T)])
        return grad_x, (dw * lagged).sum()


class MASE(Function):
    """Mean absolute scaled error; the scale is the mean absolute step of the history."""

    @staticmethod
    def forward(ctx, forecast, actual, history):
        e = forecast - actual
        steps = history[:, 1:] - history[:, :-1]
        scale = steps.abs().mean(dim=1)
        mae = e.abs().mean(dim=1)
        ctx.save_for_backward(e, steps, scale, mae)
        return mae / scale

    @staticmethod
    def backward(ctx, grad_out):
        e, steps, scale, mae = ctx.saved_tensors
        g_mae = grad_out / scale
        g_e = g_mae.unsqueeze(1) * torch.sign(e) / e.shape[1]
        g_scale = -g_mae * mae
        g_steps = g_scale.unsqueeze(1) * torch.sign(steps) / steps.shape[1]
        pad = torch.nn.functional.pad
        return g_e, -g_e, pad(g_steps, (1, 0)) - pad(g_steps, (0, 1))


def mase(forecast, actual, history):
    return (forecast - actual).abs().mean(1) / history.diff(dim=1).abs().mean(1)


OPERATIONS = [
    Operation(
        "normalized series, gradients of its moments",
        NormalizedSeriesFunction,
        RevIN,
        normalized_series,
        lambda: {"x": torch.randn(2, 5, 3), "weight": torch.randn(3)},
        named="the incoming gradients of the mean and of the standard deviation are not used",
        kinds=("missing term", "ignores the incoming gradient"),
        named_words=(
            r"grad_mu|grad_sigma",
            r"(second|third|output [12]|mean|std|mu|sigma).*(missing|ignored|not used)",
        ),
        located=(r"gradient of x\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "fractional difference, weights of weights",
        FractionalDifferenceFunction,
        FracDiff,
        fractional_difference,
        lambda: {"x": torch.randn(2, 5), "order": 0.2 + 0.5 * torch.rand(())},
        named="each weight is made of the one before, whose derivative by the order is left out",
        kinds=("missing term", "step left out"),
        named_words=(
            r"as if it were a constant",
            r"missing term|term .*missing|part .*missing",
            r"weights?\[|\bw\[k",
        ),
        located=(r"gradient of (order|d)\b",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "scaled error, square of the scale",
            MASE.apply,
            mase,
            lambda: {
                "forecast": torch.randn(3, 4),
                "actual": torch.randn(3, 4),
                "history": 3 * torch.randn(3, 5),
            },
            whole_numbers=False,
        ),
        named="the history's gradient is divided by the scale once, where its square belongs",
        kinds=("factor by element", "step left out"),
        named_words=(r"\bscale\b", r"square|twice|\*\* ?2"),
        located=(r"gradient of history\b",),
    ),
]
