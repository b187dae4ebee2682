"""Risks: volatility that clusters, largest values of years, lifetimes under a growing hazard."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

DIED = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])


def volatility_loss(r, omega, alpha, beta):
    variance, loss = omega / (1 - alpha - beta), 0
    for t in range(len(r)):
        loss = loss + 0.5 * (variance.log() + r[t] ** 2 / variance)
        variance = omega + alpha * r[t] ** 2 + beta * variance
    return loss


class VolatilityLossFunction(Function):
    @staticmethod
    def forward(ctx, r, omega, alpha, beta):
        ctx.save_for_backward(r, omega, alpha, beta)
        return volatility_loss(r, omega, alpha, beta)

    @staticmethod
    def backward(ctx, g):
        r, omega, alpha, beta = ctx.saved_tensors
        rest = 1 - alpha - beta
        variances = [omega / rest]
        for t in range(len(r) - 1):
            variances.append(omega + alpha * r[t] ** 2 + beta * variances[t])
        grad_r, grad_omega, grad_alpha, grad_beta = (torch.zeros_like(each) for each in (r, omega, alpha, beta))
        later = torch.zeros_like(omega)
        for t in reversed(range(len(r))):
            v = variances[t]
            grad_r[t] = g * r[t] / v + 2 * later * alpha * r[t]
            grad_alpha = grad_alpha + later * r[t] ** 2
            grad_beta = grad_beta + later * v
            grad_omega = grad_omega + later
            later = beta * later + 0.5 * g * (1 / v - r[t] ** 2 / v**2)
        to_rest = later * omega / rest**2
        return grad_r, grad_omega + later / rest, grad_alpha + to_rest, grad_beta + to_rest


class GARCHNegLogLik(Function):
    """Gaussian GARCH(1, 1), started at the stationary variance."""

    @staticmethod
    def forward(ctx, returns, omega, alpha, beta):
        T = returns.numel()
        h = torch.empty_like(returns)
        h[0] = omega / (1 - alpha - beta)
        for t in range(1, T):
            h[t] = omega + alpha * returns[t - 1] ** 2 + beta * h[t - 1]
        ctx.save_for_backward(returns, h, omega, alpha, beta)
        return 0.5 * (torch.log(h) + returns**2 / h).sum()

    @staticmethod
    def backward(ctx, grad_loss):
        returns, h, omega, alpha, beta = ctx.saved_tensors
        grad_h = 0.5 * grad_loss * (1 / h - returns**2 / h**2)
        grad_returns = grad_loss * returns / h
        g_omega = g_alpha = g_beta = 0.0
        for t in range(returns.numel() - 1, 0, -1):
            g_omega = g_omega + grad_h[t]
            g_alpha = g_alpha + grad_h[t] * returns[t - 1] ** 2
            g_beta = g_beta + grad_h[t] * h[t - 1]
            grad_h[t - 1] += beta * grad_h[t]
        persistence = 1 - alpha - beta
        g_omega = g_omega + grad_h[0] / persistence
        g_alpha = g_alpha + grad_h[0] * omega / persistence**2
        g_beta = g_beta + grad_h[0] * omega / persistence**2
        return grad_returns, g_omega, g_alpha, g_beta


def largest_value_loss(x, mu, sigma, xi):
    t = 1 + xi * (x - mu) / sigma
    return sigma.log() + (1 + 1 / xi) * t.log() + t ** (-1 / xi)


class LargestValueLossFunction(Function):
    @staticmethod
    def forward(ctx, x, mu, sigma, xi):
        ctx.save_for_backward(x, mu, sigma, xi)
        return largest_value_loss(x, mu, sigma, xi)

    @staticmethod
    def backward(ctx, g):
        x, mu, sigma, xi = ctx.saved_tensors
        z = (x - mu) / sigma
        t = 1 + xi * z
        power = t ** (-1 / xi)
        to_t = g * ((1 + 1 / xi) - power / xi) / t
        to_z = to_t * xi
        grad_xi = (to_t * z + g * t.log() * (power - 1) / xi**2).sum(0)
        return to_z / sigma, -(to_z / sigma).sum(0), (g / sigma - to_z * z / sigma).sum(0), grad_xi


class GEVLoss(Function):
    @staticmethod
    def forward(ctx, x, loc, scale, shape):
        z = (x - loc) / scale
        base = 1 + shape * z
        inv = 1 / shape
        u = base.pow(-inv)
        ctx.save_for_backward(z, base, u, scale, shape)
        return torch.log(scale) + (1 + inv) * torch.log(base) + u

    @staticmethod
    def backward(ctx, grad):
        z, base, u, scale, shape = ctx.saved_tensors
        inv = 1 / shape
        d_base = (1 + inv) / base - inv * u / base
        grad_z = grad * d_base * shape
        grad_x = grad_z / scale
        grad_loc = -grad_x.sum(dim=0)
        grad_scale = ((grad - grad_z * z) / scale).sum(dim=0)
        d_shape = d_base * z - inv**2 * torch.log(base)
        grad_shape = (grad * d_shape).sum(dim=0)
        return grad_x, grad_loc, grad_scale, grad_shape


def lifetime_loss(t, a, b):
    return torch.exp(a) / b * torch.expm1(b * t) - DIED.to(t) * (a + b * t)


class LifetimeLossFunction(Function):
    @staticmethod
    def forward(ctx, t, a, b):
        ctx.save_for_backward(t, a, b)
        return lifetime_loss(t, a, b)

    @staticmethod
    def backward(ctx, g):
        t, a, b = ctx.saved_tensors
        died = DIED.to(t)
        hazard = torch.exp(a + b * t)
        risk = torch.exp(a) * torch.expm1(b * t) / b
        grad_b = (g * ((hazard * t - risk) / b - died * t)).sum()
        return g * (hazard - died * b), (g * (risk - died)).sum(), grad_b


class GompertzNLL(Function):
    """Negative log-likelihood of lifetimes with hazard exp(a + b t); some are right-censored."""

    @staticmethod
    def forward(ctx, t, a, b):
        event = DIED.bool().to(t.device)
        log_hazard = a + b * t
        cumulative = a.exp() * torch.expm1(b * t) / b
        ctx.save_for_backward(t, b, log_hazard.exp(), cumulative)
        ctx.event = event
        return cumulative - torch.where(event, log_hazard, torch.zeros_like(t))

    @staticmethod
    def backward(ctx, grad_nll):
        t, b, hazard, cumulative = ctx.saved_tensors
        event = ctx.event
        grad_t = torch.where(event, grad_nll * (hazard - b), torch.zeros_like(t))
        grad_a = (grad_nll * (cumulative - event.to(t))).sum()
        d_cum_db = (t * hazard - cumulative) / b
        grad_b = (grad_nll * (d_cum_db - event.to(t) * t)).sum()
        return grad_t, grad_a, grad_b


def returns_and_three():
    return {
        "r": torch.randn(6),
        "omega": 0.2 + torch.rand(()),
        "alpha": 0.1 + 0.2 * torch.rand(()),
        "beta": 0.2 + 0.3 * torch.rand(()),
    }


def largest_values():
    mu, sigma = torch.rand(3), 0.5 + torch.rand(3)
    return {"x": mu + 2 * torch.rand(6, 3), "mu": mu, "sigma": sigma, "xi": 0.2 + 0.3 * torch.rand(3)}


OPERATIONS = [
    Operation(
        "volatility that clusters, returns of the step before",
        VolatilityLossFunction,
        GARCHNegLogLik,
        volatility_loss,
        returns_and_three,
        named="returns: their part through the variance of the next step is missing",
        kinds=("missing term", "step left out"),
        named_words=(r"missing", r"varianc|\bh\b|grad_h|alpha", r"constant"),
        located=(r"gradient of (r|returns)\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "largest values of years, exponent of the power",
        LargestValueLossFunction,
        GEVLoss,
        largest_value_loss,
        largest_values,
        named="xi: its part through the exponent of the power is missing, only that through the base is there",
        kinds=("missing term", "step left out"),
        named_words=(r"missing", r"exponent", r"\bu\b.*log|log.*\bu\b", r"second argument.*pow"),
        located=(r"gradient of (xi|shape)\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "lifetimes under a growing hazard, censored ones",
        LifetimeLossFunction,
        GompertzNLL,
        lifetime_loss,
        lambda: {"t": 0.2 + torch.rand(6), "a": torch.randn(()), "b": 0.5 + torch.rand(())},
        named="t: those that are censored get no gradient, where only the log hazard is masked",
        kinds=("only at some indices", "missing term", "step left out", "only for some values"),
        named_words=(r"event|censor|DIED|mask|where",),
        located=(r"gradient of t\b",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
