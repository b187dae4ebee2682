"""Money: price of an option, inequality of incomes, logarithmic mean of two prices."""

from __future__ import annotations

import math

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

RATE = 0.3


def normal_cdf(x):
    return (1 + torch.erf(x / math.sqrt(2))) / 2


def normal_pdf(x):
    return torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


def option_price(spot, strike, volatility, years):
    deviation = volatility * years.sqrt()
    d1 = (torch.log(spot / strike) + RATE * years) / deviation + deviation / 2
    return spot * normal_cdf(d1) - strike * torch.exp(-RATE * years) * normal_cdf(d1 - deviation)


class OptionPriceFunction(Function):
    @staticmethod
    def forward(ctx, spot, strike, volatility, years):
        ctx.save_for_backward(spot, strike, volatility, years)
        return option_price(spot, strike, volatility, years)

    @staticmethod
    def backward(ctx, g):
        spot, strike, volatility, years = ctx.saved_tensors
        root = years.sqrt()
        d1 = (torch.log(spot / strike) + RATE * years) / (volatility * root) + volatility * root / 2
        to_deviation = g * spot * normal_pdf(d1)
        to_discounted = -g * normal_cdf(d1 - volatility * root)
        discount = torch.exp(-RATE * years)
        to_years = to_deviation * volatility / (2 * root) - to_discounted * RATE * strike * discount
        return g * normal_cdf(d1), to_discounted * discount, to_deviation * root, to_years


class BlackScholesCall(Function):
    @staticmethod
    def forward(ctx, S, K, sigma, T):
        sqrt_T = torch.sqrt(T)
        d1 = (torch.log(S / K) + (RATE + 0.5 * sigma * sigma) * T) / (sigma * sqrt_T)
        d2 = d1 - sigma * sqrt_T
        pv = torch.exp(-RATE * T)
        ctx.save_for_backward(S, sigma, sqrt_T, d1, d2, pv)
        return S * normal_cdf(d1) - K * pv * normal_cdf(d2)

    @staticmethod
    def backward(ctx, grad_price):
        S, sigma, sqrt_T, d1, d2, pv = ctx.saved_tensors
        delta = normal_cdf(d1)
        dual_delta = -pv * normal_cdf(d2)
        vega = S * normal_pdf(d1) * sqrt_T
        theta = S * normal_pdf(d1) * sigma / (2 * sqrt_T)
        return grad_price * delta, grad_price * dual_delta, grad_price * vega, grad_price * theta


def inequality(x):
    n = x.shape[1]
    weights = 2 * torch.arange(1, n + 1).to(x) - n - 1
    return (weights * x.sort(1).values).sum(1) / (n * x.sum(1))


class InequalityFunction(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return inequality(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        n = x.shape[1]
        ranks = (x[:, :, None] > x[:, None]).sum(2)
        weights = (2 * ranks + 1 - n).to(x)
        return g[:, None] * (weights / n - inequality(x)[:, None]) / x.sum(1, keepdim=True)


class GiniIndex(Function):
    @staticmethod
    def forward(ctx, income):
        n = income.size(1)
        ordered, order = torch.sort(income, dim=1)
        coefficients = torch.arange(1 - n, n, 2).to(income)
        total = income.sum(dim=1)
        gini = (ordered @ coefficients) / (n * total)
        ctx.save_for_backward(order, coefficients, total, gini)
        return gini

    @staticmethod
    def backward(ctx, grad_out):
        order, coefficients, total, gini = ctx.saved_tensors
        n = order.size(1)
        numerator_grad = coefficients[order] / n
        return (grad_out / total).unsqueeze(1) * (numerator_grad - gini.unsqueeze(1))


def logarithmic_mean(a, b):
    equal = a == b
    ratio = torch.where(equal, torch.full_like(a, 2.0), a / b)
    return torch.where(equal, (a + b) / 2, (a - b) / torch.log(ratio))


class LogarithmicMeanFunction(Function):
    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return logarithmic_mean(a, b)

    @staticmethod
    def backward(ctx, g):
        a, b = ctx.saved_tensors
        equal = a == b
        logarithm = torch.log(torch.where(equal, torch.full_like(a, 2.0), a / b))
        of_ratio = (a - b) / logarithm**2
        to_a = torch.where(equal, torch.full_like(a, 0.5), 1 / logarithm - of_ratio / a)
        to_b = torch.where(equal, torch.full_like(a, 0.5), of_ratio / b - 1 / logarithm)
        return g * to_a, g * to_b


class LogMean(Function):
    @staticmethod
    def forward(ctx, p, q):
        gap = p.log() - q.log()
        mean = torch.where(gap == 0, p, (p - q) / gap)
        ctx.save_for_backward(p, q, gap, mean)
        return mean

    @staticmethod
    def backward(ctx, grad):
        p, q, gap, mean = ctx.saved_tensors
        grad_p = grad * (1 - mean / p) / gap
        grad_q = grad * (mean / q - 1) / gap
        return grad_p, grad_q


def two_prices():
    a = 2 + 3 * torch.rand(12)
    gap = torch.where(torch.rand(12) < 0.5, -1.0, 1.0) * (0.6 + 0.6 * torch.rand(12))
    return {"a": a, "b": a + gap}


OPERATIONS = [
    Operation(
        "price of an option, discount over time",
        OptionPriceFunction,
        BlackScholesCall,
        option_price,
        lambda: {
            "spot": 1 + torch.rand(6),
            "strike": 1 + torch.rand(6),
            "volatility": 0.3 + torch.rand(6),
            "years": 0.5 + torch.rand(6),
        },
        named="years: the part through the strike's discount, rate times strike times discount, is missing",
        kinds=("missing term",),
        named_words=(r"missing", r"constant", r"no effect", r"discount|RATE|pv\b"),
        located=(r"gradient of (years|T)\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "inequality of incomes, order for ranks",
        InequalityFunction,
        GiniIndex,
        inequality,
        lambda: (0.5 + 2 * torch.rand(4, 6),),
        named="the sorted order's indices are used as the ranks of the elements: the permutation is not inverted",
        kinds=("permuted", "not transposed", "transposed", "another operand"),
        named_words=(r"permut", r"order|rank|sort", r"scatter|inver"),
        located=(r"gradient of (x|income|input 0)",),
        options={"whole_numbers": False},
    ),
    Operation(
        "logarithmic mean, equal numbers",
        LogarithmicMeanFunction,
        LogMean,
        logarithmic_mean,
        two_prices,
        named="0 / 0, NaN, where both numbers are equal: forward treats that case apart, backward does not",
        kinds=("not finite", "only at ties", "only for some values"),
        named_words=(r"\bnan\b|not finite", r"equal|tie"),
        located=(r"gradient of (a|p)\b", r"gradient of (b|q)\b"),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
