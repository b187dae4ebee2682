"""Money: reward over risk, the rate that makes a loan's value zero, the time that a bond takes, shares of risk."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right


def reward_over_risk(shares, means, covariance):
    return shares @ means / (shares @ covariance @ shares).sqrt()


class RewardOverRiskFunction(Function):
    @staticmethod
    def forward(ctx, shares, means, covariance):
        ctx.save_for_backward(shares, means, covariance)
        return reward_over_risk(shares, means, covariance)

    @staticmethod
    def backward(ctx, g):
        w, means, c = ctx.saved_tensors
        risk = (w @ c @ w).sqrt()
        ratio = w @ means / risk
        to_variance = -0.5 * g * ratio / risk**2
        return g * means / risk + to_variance * (c @ w + w @ c), g * w / risk, to_variance * torch.outer(w, w)


class SharpeRatio(Function):
    @staticmethod
    def forward(ctx, w, mu, Sigma):
        excess = w.dot(mu)
        vol = (w @ Sigma @ w).sqrt()
        ctx.save_for_backward(w, mu, Sigma, excess, vol)
        return excess / vol

    @staticmethod
    def backward(ctx, grad):
        w, mu, Sigma, excess, vol = ctx.saved_tensors
        grad_vol = -grad * excess / vol**2
        grad_w = grad * mu / vol + grad_vol * (Sigma + Sigma.t()) @ w / vol
        grad_mu = grad * w / vol
        grad_Sigma = 0.5 * grad_vol * torch.outer(w, w) / vol
        return grad_w, grad_mu, grad_Sigma


def solve_for_rate(payments, price):
    years = torch.arange(1, payments.shape[-1] + 1).to(payments)
    rate = torch.full_like(price, 0.1)
    for _ in range(12):
        discount = torch.exp(-rate[:, None] * years)
        value = (payments * discount).sum(-1) - price
        rate = rate + value / (years * payments * discount).sum(-1)
    return rate


def rate_of_return(payments, price):
    return solve_for_rate(payments, price)


class RateOfReturnFunction(Function):
    @staticmethod
    def forward(ctx, payments, price):
        rate = rate_of_return(payments, price)
        ctx.save_for_backward(payments, rate)
        return rate

    @staticmethod
    def backward(ctx, g):
        payments, rate = ctx.saved_tensors
        years = torch.arange(1, payments.shape[-1] + 1).to(payments)
        discount = torch.exp(-rate[:, None] * years)
        per_value = g / (years * payments * discount).sum(-1)
        return per_value[:, None] * discount, -per_value


class InternalRate(Function):
    """Continuously compounded internal rate of return; the gradient is that of the implicit function."""

    @staticmethod
    def forward(ctx, cash, price):
        with torch.no_grad():
            rate = solve_for_rate(cash, price)
        ctx.save_for_backward(cash, rate)
        return rate

    @staticmethod
    def backward(ctx, grad_rate):
        cash, rate = ctx.saved_tensors
        t = torch.arange(1, cash.shape[-1] + 1, device=cash.device, dtype=cash.dtype)
        discount = torch.exp(-rate.unsqueeze(-1) * t)
        slope = (cash * discount).sum(dim=-1)
        lam = grad_rate / slope
        return lam.unsqueeze(-1) * discount, -lam


def duration(payments, rate):
    years = torch.arange(1, payments.shape[-1] + 1).to(payments)
    value = payments * torch.exp(-rate[:, None] * years)
    return (years * value).sum(-1) / value.sum(-1)


class DurationFunction(Function):
    @staticmethod
    def forward(ctx, payments, rate):
        ctx.save_for_backward(payments, rate)
        return duration(payments, rate)

    @staticmethod
    def backward(ctx, g):
        payments, rate = ctx.saved_tensors
        years = torch.arange(1, payments.shape[-1] + 1).to(payments)
        discount = torch.exp(-rate[:, None] * years)
        value = payments * discount
        price = value.sum(-1, keepdim=True)
        mean = (years * value).sum(-1, keepdim=True) / price
        to_value = g[:, None] * (years - mean) / price
        return to_value * discount, -(to_value * years * value).sum(-1)


class MacaulayDuration(Function):
    @staticmethod
    def forward(ctx, C, y):
        t = torch.arange(1, C.shape[1] + 1).to(C)
        pv = C * torch.exp(-y.unsqueeze(1) * t)
        P = pv.sum(dim=1)
        D = (t * pv).sum(dim=1) / P
        ctx.save_for_backward(C, t, pv, P, D)
        return D

    @staticmethod
    def backward(ctx, grad_D):
        C, t, pv, P, D = ctx.saved_tensors
        grad_pv = grad_D.unsqueeze(1) * (t - D.unsqueeze(1)) / P.unsqueeze(1)
        grad_C = grad_pv * pv / C
        second_moment = (t**2 * pv).sum(dim=1) / P
        grad_y = -grad_D * second_moment
        return grad_C, grad_y


def risk_shares(weights, covariance):
    each = weights * (covariance @ weights)
    return each / each.sum()


class RiskSharesFunction(Function):
    @staticmethod
    def forward(ctx, weights, covariance):
        ctx.save_for_backward(weights, covariance)
        return risk_shares(weights, covariance)

    @staticmethod
    def backward(ctx, g):
        w, c = ctx.saved_tensors
        marginal = c @ w
        each = w * marginal
        total = each.sum()
        to_each = (g - (g * each).sum() / total) / total
        return to_each * marginal + c.T @ (to_each * w), torch.outer(to_each * w, w)


class RiskContribution(Function):
    """Share of the variance of a portfolio that each asset carries."""

    @staticmethod
    def forward(ctx, w, cov):
        marginal = cov @ w
        rc = w * marginal
        total = rc.sum()
        share = rc / total
        ctx.save_for_backward(w, cov, marginal, share, total)
        return share

    @staticmethod
    def backward(ctx, grad_share):
        w, cov, marginal, share, total = ctx.saved_tensors
        grad_rc = (grad_share - grad_share.dot(share)) / total
        grad_marginal = grad_rc * w
        grad_w = grad_rc * marginal
        grad_w += cov.t() @ grad_marginal
        grad_cov = torch.outer(w, grad_marginal)
        return grad_w, grad_cov


def covariances(size):
    return torch.eye(size) + torch.rand(size, size)


def loans():
    return {"payments": 0.5 + torch.rand(3, 4), "price": 1.2 + torch.rand(3)}


OPERATIONS = [
    Operation(
        "reward over risk, both sides of the variance",
        RewardOverRiskFunction,
        SharpeRatio,
        reward_over_risk,
        lambda: {"shares": 0.2 + torch.rand(4), "means": torch.randn(4), "covariance": covariances(4)},
        named="shares: the part through the variance has twice its size, the factor 1/2 of the root is missing",
        kinds=("factor of one term", "constant factor"),
        named_words=(r"factor", r"twice|half|1/2|0\.5|times 2"),
        located=(r"gradient of (shares|w)\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "rate that makes a value zero, years left out",
        RateOfReturnFunction,
        InternalRate,
        rate_of_return,
        loans,
        named="both inputs: the slope of the value over the rate lacks the years",
        kinds=("factor by element", "step left out", "another operand", "missing term"),
        named_words=(r"\bt\b|years|arange", r"slope"),
        located=(r"gradient of (payments|cash)\b", r"gradient of price\b"),
        options={"whole_numbers": False},
    ),
    Operation(
        "time that a bond takes, square of the mean",
        DurationFunction,
        MacaulayDuration,
        duration,
        lambda: {"payments": 0.5 + torch.rand(3, 4), "rate": torch.rand(3)},
        named="rate: the part through the price, the square of the mean time, is missing: a moment for the variance",
        kinds=("missing term", "another operand", "step left out"),
        named_words=(r"missing", r"price|\bP\b|\bD\b", r"divisor|denominator|quotient|divi", r"centred"),
        located=(r"gradient of (rate|y)\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "shares of risk, outer product turned",
        RiskSharesFunction,
        RiskContribution,
        risk_shares,
        lambda: {"weights": 0.2 + torch.rand(4), "covariance": covariances(4)},
        named="covariance: the transposed of its gradient, the vectors of the outer product are exchanged",
        kinds=("transposed", "swapped"),
        named_words=(r"transpos|swap|exchang",),
        located=(r"gradient of (covariance|cov)\b",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
