"""Statistics: a density between two bounds, hazards of intervals, distance of two samples by a kernel."""

from __future__ import annotations

import math

import torch
from torch.autograd import Function
from torch.nn.functional import logsigmoid

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

LOW, HIGH = -1.0, 2.0


def normal_cdf(x):
    return torch.erfc(-x / math.sqrt(2)) / 2


def normal_pdf(x):
    return torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


def truncated_density(x, mean, log_deviation):
    deviation = log_deviation.exp()
    inside = normal_cdf((HIGH - mean) / deviation) - normal_cdf((LOW - mean) / deviation)
    return -(((x - mean) / deviation) ** 2) / 2 - log_deviation - inside.log()


class TruncatedDensityFunction(Function):
    @staticmethod
    def forward(ctx, x, mean, log_deviation):
        ctx.save_for_backward(x, mean, log_deviation)
        return truncated_density(x, mean, log_deviation)

    @staticmethod
    def backward(ctx, g):
        x, mean, log_deviation = ctx.saved_tensors
        deviation = log_deviation.exp()
        z, high, low = ((v - mean) / deviation for v in (x, HIGH, LOW))
        inside = normal_cdf(high) - normal_cdf(low)
        of_bounds = (normal_pdf(high) - normal_pdf(low)) / inside
        scaled = (high * normal_pdf(high) - low * normal_pdf(low)) / inside
        return -g * z / deviation, g * (z + of_bounds) / deviation, g * (z**2 - 1 + scaled)


class TruncatedNormalLogProb(Function):
    @staticmethod
    def forward(ctx, x, mu, log_sigma):
        sigma = torch.exp(log_sigma)
        z = (x - mu) / sigma
        alpha = (LOW - mu) / sigma
        beta = (HIGH - mu) / sigma
        Z = normal_cdf(beta) - normal_cdf(alpha)
        ctx.save_for_backward(z, alpha, beta, Z, sigma)
        return -0.5 * z * z - log_sigma - torch.log(Z)

    @staticmethod
    def backward(ctx, grad):
        z, alpha, beta, Z, sigma = ctx.saved_tensors
        hazard = (normal_pdf(beta) - normal_pdf(alpha)) / Z
        grad_x = -grad * z / sigma
        grad_mu = grad * (z + hazard) / sigma
        grad_log_sigma = grad * (z * z - 1 + hazard)
        return grad_x, grad_mu, grad_log_sigma


def interval_loss(logits, times, events):
    steps = torch.arange(logits.shape[1])
    before, at = steps < times[:, None], steps == times[:, None]
    dies = at & (events[:, None] == 1)
    survives = before | (at & (events[:, None] == 0))
    total = dies * logsigmoid(logits) + survives * logsigmoid(-logits)
    return -total.sum() / len(logits)


class IntervalLossFunction(Function):
    @staticmethod
    def forward(ctx, logits, times, events):
        ctx.save_for_backward(logits, times, events)
        return interval_loss(logits, times, events)

    @staticmethod
    def backward(ctx, g):
        logits, times, events = ctx.saved_tensors
        steps = torch.arange(logits.shape[1])
        at_risk = steps <= times[:, None]
        dies = (steps == times[:, None]) * events[:, None]
        return g * (at_risk * logits.sigmoid() - dies) / len(logits), None, None


class DiscreteHazardNLL(Function):
    @staticmethod
    def forward(ctx, logits, t, d):
        n = torch.arange(t.numel())
        target = torch.zeros_like(logits)
        target[n, t] = d.to(logits.dtype)
        weight = (torch.arange(logits.size(1)).unsqueeze(0) <= t.unsqueeze(1)).to(logits.dtype)
        nll = torch.nn.functional.softplus(logits) - target * logits
        ctx.save_for_backward(logits, target, weight)
        return (weight * nll).sum() / logits.size(0)

    @staticmethod
    def backward(ctx, grad_out):
        logits, target, weight = ctx.saved_tensors
        residual = torch.sigmoid(logits) - target
        return grad_out * weight * residual / target.sum(), None, None


def squares(a, b):
    return ((a[:, None] - b) ** 2).sum(2)


def sample_distance(x, y, log_width):
    between = torch.exp(-squares(x, y) * torch.exp(-2 * log_width) / 2)
    total = -2 * between.mean()
    for points in (x, y):
        kernel = torch.exp(-squares(points, points) * torch.exp(-2 * log_width) / 2)
        others = 1 - torch.eye(len(points)).to(kernel)
        total = total + (kernel * others).sum() / (len(points) * (len(points) - 1))
    return total


class SampleDistanceFunction(Function):
    @staticmethod
    def forward(ctx, x, y, log_width):
        ctx.save_for_backward(x, y, log_width)
        return sample_distance(x, y, log_width)

    @staticmethod
    def backward(ctx, g):
        x, y, log_width = ctx.saved_tensors
        sign = torch.cat([x.new_full((len(x),), 1 / len(x)), y.new_full((len(y),), -1 / len(y))])
        n = torch.tensor([len(x)] * len(x) + [len(y)] * len(y)).to(x)
        same = (sign[:, None] * sign > 0).to(x)
        weights = sign[:, None] * sign * (1 + same / (n - 1)) * (1 - torch.eye(len(n)).to(x))
        points, precision = torch.cat([x, y]), torch.exp(-2 * log_width)
        distances = squares(points, points)
        inner = g * weights * precision * torch.exp(-distances * precision / 2)
        to_points = 2 * (inner @ points - inner.sum(1, keepdim=True) * points)
        return to_points[: len(x)], to_points[len(x) :], (inner * distances).sum()


class UnbiasedMMD(Function):
    @staticmethod
    def forward(ctx, X, Y, log_h):
        n, m = X.size(0), Y.size(0)
        gamma = 0.5 * torch.exp(-2 * log_h)
        Dxx, Dyy, Dxy = squares(X, X), squares(Y, Y), squares(X, Y)
        Kxx, Kyy, Kxy = (-gamma * Dxx).exp(), (-gamma * Dyy).exp(), (-gamma * Dxy).exp()
        ctx.save_for_backward(X, Y, gamma, Dxx, Dyy, Dxy, Kxx, Kyy, Kxy)
        within_x = (Kxx.sum() - Kxx.trace()) / (n * (n - 1))
        within_y = (Kyy.sum() - Kyy.trace()) / (m * (m - 1))
        return within_x + within_y - 2 * Kxy.mean()

    @staticmethod
    def backward(ctx, grad):
        X, Y, gamma, Dxx, Dyy, Dxy, Kxx, Kyy, Kxy = ctx.saved_tensors
        n, m = X.size(0), Y.size(0)
        wx, wy, wxy = grad / (n * (n - 1)), grad / (m * (m - 1)), 2 * grad / (n * m)
        within = wx * 4 * gamma * (Kxx @ X - Kxx.sum(1, keepdim=True) * X)
        across = wxy * 2 * gamma * (Kxy @ Y - Kxy.sum(1, keepdim=True) * X)
        grad_X = within - across
        within = wx * 4 * gamma * (Kyy @ Y - Kyy.sum(1, keepdim=True) * Y)
        across = wxy * 2 * gamma * (Kxy.t() @ X - Kxy.sum(0).unsqueeze(1) * Y)
        grad_Y = within - across
        grad_gamma = wxy * (Kxy * Dxy).sum() - wx * (Kxx * Dxx).sum() - wy * (Kyy * Dyy).sum()
        return grad_X, grad_Y, -2 * gamma * grad_gamma


OPERATIONS = [
    Operation(
        "density between two bounds, bounds as factors",
        TruncatedDensityFunction,
        TruncatedNormalLogProb,
        truncated_density,
        lambda: {"x": torch.randn(7), "mean": torch.randn(7), "log_deviation": torch.randn(7) / 3},
        named="log_deviation: the densities at the bounds lack the bounds beta and alpha as factors",
        kinds=("step left out", "another operand", "factor of one term"),
        named_words=(r"alpha|beta", r"bound", r"hazard", r"LOW|HIGH"),
        located=(r"gradient of (log_deviation|log_sigma)",),
    ),
    Operation(
        "hazards of intervals, number of events",
        IntervalLossFunction,
        DiscreteHazardNLL,
        interval_loss,
        lambda: {
            "logits": torch.randn(5, 6),
            "times": torch.tensor([2, 5, 0, 3, 4]),
            "events": torch.tensor([1, 0, 1, 0, 1]),
        },
        named="divided by the 3 events, where forward divides by the 5 examples",
        kinds=("constant factor", "another operand"),
        named_words=(r"\b5 ?/ ?3\b|1\.66|1\.67", r"events|target\.sum", r"number of"),
        located=(r"gradient of logits",),
    ),
    Operation(
        "distance of two samples, size of the other",
        SampleDistanceFunction,
        UnbiasedMMD,
        sample_distance,
        lambda: {"x": torch.randn(5, 3), "y": torch.randn(4, 3) + 0.3, "log_width": torch.randn(()) / 4 + 0.3},
        named="y: the part of pairs of y has the weight of pairs of x, 1 / 20 instead of 1 / 12",
        kinds=("factor of one term", "another operand"),
        named_words=(r"\bwx\b.*\bwy\b|\bwy\b.*\bwx\b", r"factor|0\.6\b|3 ?/ ?5", r"weight"),
        located=(r"gradient of [yY]\b",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
