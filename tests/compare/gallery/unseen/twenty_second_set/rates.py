"""Rates and risks: a complex fractional map, the rate of a reaction, each asset's part of a portfolio's risk."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

GAS, PER_SECOND = 0.5, 3.0


def fractional_map(z, a, c):
    return (a * z + 1) / (c * z + 1)


class FractionalMapFunction(Function):
    @staticmethod
    def forward(ctx, z, a, c):
        ctx.save_for_backward(z, a, c)
        return fractional_map(z, a, c)

    @staticmethod
    def backward(ctx, g):
        z, a, c = ctx.saved_tensors
        below = c * z + 1
        w = (a * z + 1) / below
        to_above = g / below.conj()
        to_below = -to_above * w.conj()
        to_z = to_above * a.conj() + to_below * c.conj()
        return to_z, (to_above * z.conj()).sum(0), (to_below * z.conj()).sum(0)


class Mobius(Function):
    """w = (a z + 1) / (c z + 1), complex, z (B, N), a and c (N,)."""

    @staticmethod
    def forward(ctx, z, a, c):
        num = a * z + 1
        den = c * z + 1
        ctx.save_for_backward(z, a, c, num, den)
        return num / den

    @staticmethod
    def backward(ctx, grad_w):
        z, a, c, num, den = ctx.saved_tensors
        dw_dz = (a - c) / den**2
        dw_da = z / den
        dw_dc = -num * z / den**2
        grad_z = grad_w * dw_dz.conj()
        grad_a = (grad_w * dw_da).sum(0)
        grad_c = (grad_w * dw_dc.conj()).sum(0)
        return grad_z, grad_a, grad_c


def reaction_rate(barrier, temperature):
    return PER_SECOND * temperature * torch.exp(-barrier / (GAS * temperature))


class ReactionRateFunction(Function):
    @staticmethod
    def forward(ctx, barrier, temperature):
        ctx.save_for_backward(barrier, temperature)
        return reaction_rate(barrier, temperature)

    @staticmethod
    def backward(ctx, g):
        barrier, temperature = ctx.saved_tensors
        g = g * PER_SECOND * torch.exp(-barrier / (GAS * temperature))
        return -g / GAS, g * (1 + barrier / (GAS * temperature))


class EyringRate(Function):
    """k = kB/h T exp(-dG / (R T))."""

    @staticmethod
    def forward(ctx, dG, T):
        k = PER_SECOND * T * torch.exp(-dG / (GAS * T))
        ctx.save_for_backward(dG, T, k)
        return k

    @staticmethod
    def backward(ctx, grad_k):
        dG, T, k = ctx.saved_tensors
        grad_dG = -grad_k * k / (GAS * T)
        grad_T = grad_k * k * dG / (GAS * T**2)
        return grad_dG, grad_T


def parts_of_risk(w, covariance):
    marginal = w @ covariance
    return w * marginal / (w * marginal).sum(1, keepdim=True).sqrt()


class PartsOfRiskFunction(Function):
    @staticmethod
    def forward(ctx, w, covariance):
        ctx.save_for_backward(w, covariance)
        return parts_of_risk(w, covariance)

    @staticmethod
    def backward(ctx, g):
        w, covariance = ctx.saved_tensors
        marginal = w @ covariance
        variance = (w * marginal).sum(1, keepdim=True)
        to_product = g - (g * w * marginal).sum(1, keepdim=True) / (2 * variance)
        to_product = to_product / variance.sqrt()
        to_marginal = to_product * w
        return to_product * marginal + to_marginal @ covariance.T, w.T @ to_marginal


class RiskContribution(Function):
    """Euler decomposition of volatility: w_i (w C)_i / sqrt(w C w) for each portfolio of the batch."""

    @staticmethod
    def forward(ctx, w, C):
        m = w @ C
        vol = (w * m).sum(dim=1, keepdim=True).sqrt()
        ctx.save_for_backward(w, C, m, vol)
        return w * m / vol

    @staticmethod
    def backward(ctx, grad_rc):
        w, C, m, vol = ctx.saved_tensors
        grad_vol = -(grad_rc * w * m).sum(dim=1, keepdim=True) / vol**2
        grad_m = grad_rc * w / vol + grad_vol * w / vol
        grad_w = grad_rc * m / vol + grad_vol * m / vol
        grad_w = grad_w + grad_m @ C.t()
        grad_C = w.t() @ grad_m
        return grad_w, grad_C


def weights_and_covariance():
    root = torch.randn(3, 3)
    return {"w": torch.rand(4, 3) + 0.5, "covariance": root @ root.T + torch.eye(3)}


OPERATIONS = [
    Operation(
        "rate of a reaction, temperature before the exponential",
        ReactionRateFunction,
        EyringRate,
        reaction_rate,
        lambda: {"barrier": torch.rand(3, 4) + 0.6, "temperature": torch.rand(3, 4) + 0.8},
        named="temperature: the derivative of the factor before the exponential, k / T, is left out",
        kinds=("missing term", "step left out"),
        named_words=(r"missing|left out|leaves out|lacks", r"k / T|product rule"),
        located=(r"gradient of (temperature|T)\b",),
    ),
    Operation(
        "parts of a portfolio's risk, variance for its root",
        PartsOfRiskFunction,
        RiskContribution,
        parts_of_risk,
        weights_and_covariance,
        named="the derivative of the root, 1 / (2 vol), lacks its factor of one half",
        kinds=("factor of one term", "constant factor", "missing term"),
        named_words=(r"grad_vol", r"factor (of )?(2|0\.5|1/2)|half|twice|0\.5", r"sqrt|root"),
        located=(r"gradient of (w|covariance|C)\b",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)


def map_inputs():
    z, a, c = (torch.randn(n, dtype=torch.complex64) for n in ((3, 4), (4,), (4,)))
    return {"z": z, "a": a, "c": 0.3 * c / (1 + c.abs())}


WRONG += [
    WrongFunction(
        Case("complex fractional map, factor a", Mobius.apply, fractional_map, map_inputs, whole_numbers=False),
        named="a: the derivative is not conjugated before it is multiplied by the incoming gradient",
        kinds=("conjugated",),
        named_words=(r"conj",),
        located=(r"gradient of a\b",),
    ),
]
RIGHT += [
    Case("complex fractional map", FractionalMapFunction.apply, fractional_map, map_inputs, whole_numbers=False),
]
