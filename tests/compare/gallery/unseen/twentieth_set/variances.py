"""Variances: moving along each row."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

RATE = 0.3


def moving_variance(x):
    mean, variance, results = x[:, 0], torch.zeros_like(x[:, 0]), []
    for t in range(1, x.shape[1]):
        step = x[:, t] - mean
        mean = mean + RATE * step
        variance = (1 - RATE) * (variance + RATE * step * step)
        results.append(variance)
    return torch.stack(results, 1)


class MovingVarianceFunction(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return moving_variance(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        means = [x[:, 0]]
        for t in range(1, x.shape[1]):
            means.append(means[-1] + RATE * (x[:, t] - means[-1]))
        grad_x = torch.zeros_like(x)
        grad_mean, grad_variance = torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0])
        for t in reversed(range(1, x.shape[1])):
            grad_variance = grad_variance + g[:, t - 1]
            step = x[:, t] - means[t - 1]
            grad_step = RATE * grad_mean + (1 - RATE) * RATE * 2 * step * grad_variance
            grad_x[:, t] = grad_step
            grad_mean = grad_mean - grad_step
            grad_variance = (1 - RATE) * grad_variance
        grad_x[:, 0] = grad_mean
        return grad_x


class EWMVariance(Function):
    """Exponentially weighted variance of each row from its second element on."""

    @staticmethod
    def forward(ctx, x):
        mu, var = x[:, 0], torch.zeros_like(x[:, 0])
        deltas, out = [], []
        for t in range(1, x.size(1)):
            delta = x[:, t] - mu
            mu = mu + RATE * delta
            var = (1 - RATE) * (var + RATE * delta**2)
            deltas.append(delta)
            out.append(var)
        ctx.save_for_backward(torch.stack(deltas, dim=1))
        return torch.stack(out, dim=1)

    @staticmethod
    def backward(ctx, grad_out):
        (deltas,) = ctx.saved_tensors
        B, n = deltas.shape
        g_x = grad_out.new_zeros(B, n + 1)
        g_mu = grad_out.new_zeros(B)
        g_var = grad_out.new_zeros(B)
        for t in range(n - 1, -1, -1):
            g_var = g_var + grad_out[:, t]
            g_delta = 2 * RATE * (1 - RATE) * deltas[:, t] * g_var
            g_x[:, t + 1] = g_delta + RATE * g_mu
            g_mu = (1 - RATE) * g_mu
            g_var = (1 - RATE) * g_var
            if t == 0:
                g_x[:, 0] = g_mu - g_delta
        return g_x


OPERATIONS = [
    Operation(
        "moving variance, steps of the mean",
        MovingVarianceFunction,
        EWMVariance,
        moving_variance,
        lambda: {"x": torch.randn(2, 5)},
        named="each step's gradient is not subtracted from the mean's, but for the first step",
        kinds=("missing term", "only at some indices", "step left out"),
        named_words=(r"\bg_mu\b", r"\bmu\b|\bmean\b", r"missing term|term .*missing|part .*missing"),
        located=(r"gradient of x\b",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
