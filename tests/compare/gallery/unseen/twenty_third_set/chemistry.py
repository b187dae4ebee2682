"""Chemistry: an inhibited enzyme and rates by temperature."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

R = 8.314e-3  # kJ / (mol K)


def inhibited_rate(s, i, vmax, km, ki):
    return vmax * s / (km * (1 + i / ki) + s)


class CompetitiveRateFunction(Function):
    @staticmethod
    def forward(ctx, s, i, vmax, km, ki):
        ctx.save_for_backward(s, i, vmax, km, ki)
        return vmax * s / (km * (1 + i / ki) + s)

    @staticmethod
    def backward(ctx, g):
        s, i, vmax, km, ki = ctx.saved_tensors
        k = km * (1 + i / ki)
        d = k + s
        gk = -g * vmax * s / d**2
        return (
            g * vmax * k / d**2,
            gk * km / ki,
            (g * s / d).sum(),
            (gk * (1 + i / ki)).sum(),
            -(gk * km * i).sum() / ki**2,
        )


class CompetitiveInhibition(Function):
    """Michaelis-Menten rate with a competitive inhibitor."""

    @staticmethod
    def forward(ctx, s, i, vmax, km, ki):
        km_app = km * (1 + i / ki)
        den = km_app + s
        ctx.save_for_backward(s, i, vmax, km, ki, km_app, den)
        return vmax * s / den

    @staticmethod
    def backward(ctx, grad_output):
        s, i, vmax, km, ki, km_app, den = ctx.saved_tensors
        grad_s = grad_output * vmax / den
        grad_vmax = (grad_output * s / den).sum()
        grad_km_app = -grad_output * vmax * s / den.pow(2)
        grad_i = grad_km_app * km / ki
        grad_km = (grad_km_app * km_app).sum() / km
        grad_ki = (-grad_km_app * km * i / ki.pow(2)).sum()
        return grad_s, grad_i, grad_vmax, grad_km, grad_ki


def rate_by_temperature(a, e, t):
    return a * torch.exp(-e / (R * t[:, None]))


class RateByTemperatureFunction(Function):
    @staticmethod
    def forward(ctx, a, e, t):
        x = torch.exp(-e / (R * t[:, None]))
        ctx.save_for_backward(a, e, t, x)
        return a * x

    @staticmethod
    def backward(ctx, g):
        a, e, t, x = ctx.saved_tensors
        gk = g * a * x
        rt = R * t[:, None]
        return (g * x).sum(0), -(gk / rt).sum(0), (gk * e / rt).sum(1) / t


class ArrheniusRates(Function):
    """k = A exp(-Ea / RT) for a column of temperatures and a row of reactions."""

    @staticmethod
    def forward(ctx, A, Ea, T):
        k = A * torch.exp(-Ea / (R * T.unsqueeze(1)))
        ctx.save_for_backward(A, Ea, T, k)
        return k

    @staticmethod
    def backward(ctx, grad_k):
        A, Ea, T, k = ctx.saved_tensors
        T = T.unsqueeze(1)
        grad_A = (grad_k * k / A).sum(0)
        grad_Ea = (-grad_k * k / (R * T)).sum(0)
        grad_T = (grad_k * k * Ea / (R * T)).sum(1)
        return grad_A, grad_Ea, grad_T


OPERATIONS = [
    Operation(
        "inhibited enzyme, substrate below the line",
        CompetitiveRateFunction,
        CompetitiveInhibition,
        inhibited_rate,
        lambda: {
            "s": torch.rand(6) + 0.5,
            "i": torch.rand(6),
            "vmax": torch.rand(()) + 1,
            "km": torch.rand(()) + 0.5,
            "ki": torch.rand(()) + 0.5,
        },
        named="s: the quotient rule's second term is missing: s is in the denominator too",
        kinds=("missing term", "step left out", "factor by element", "another operand"),
        named_words=(r"quotient|denominator|\bden\b", r"missing|left out|leaves out", r"km_app"),
        located=(r"gradient of s\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "rates by temperature, square of the temperature",
        RateByTemperatureFunction,
        ArrheniusRates,
        rate_by_temperature,
        lambda: {"a": torch.rand(4) + 1, "e": torch.rand(4) * 3 + 1, "t": 300 + 50 * torch.rand(5)},
        named="t: the derivative of 1 / T is -1 / T^2; the gradient divides by T once",
        kinds=("step left out", "factor by element", "another operand", "missing term"),
        named_words=(r"\bT\b|\bt\b", r"square|\*\* ?2|pow"),
        located=(r"gradient of (t|T)\b",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
