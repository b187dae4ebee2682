"""Finance and economics: a loan's payment, reward for risk, growth of bets, output of two factors."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

YEARS = 10


def loan_payment(principal, rate):
    return principal * rate / (1 - (1 + rate) ** -YEARS)


class LoanPaymentFunction(Function):
    @staticmethod
    def forward(ctx, principal, rate):
        discount = (1 + rate) ** -YEARS
        ctx.save_for_backward(principal, rate, discount)
        return principal * rate / (1 - discount)

    @staticmethod
    def backward(ctx, g):
        principal, rate, discount = ctx.saved_tensors
        d = 1 - discount
        slope = (d - rate * YEARS * discount / (1 + rate)) / d**2
        return g * rate / d, g * principal * slope


class AnnuityPayment(Function):
    """Constant yearly payment that repays a loan."""

    @staticmethod
    def forward(ctx, principal, rate):
        growth = (1 + rate) ** YEARS
        ctx.save_for_backward(principal, rate, growth)
        return principal * rate * growth / (growth - 1)

    @staticmethod
    def backward(ctx, grad_output):
        principal, rate, growth = ctx.saved_tensors
        d_growth = YEARS * growth / (1 + rate)
        top = rate * growth
        d_top = growth
        bottom = growth - 1
        d_factor = (d_top * bottom - top * d_growth) / bottom**2
        return grad_output * top / bottom, grad_output * principal * d_factor


def reward_for_risk(returns, weights):
    r = returns @ weights
    return r.mean() / r.std()


class RewardForRiskFunction(Function):
    @staticmethod
    def forward(ctx, returns, weights):
        r = returns @ weights
        ctx.save_for_backward(returns, weights, r)
        return r.mean() / r.std()

    @staticmethod
    def backward(ctx, g):
        returns, weights, r = ctx.saved_tensors
        n, mean, std = len(r), r.mean(), r.std()
        gr = g * (1 / (n * std) - mean * (r - mean) / ((n - 1) * std**3))
        return torch.outer(gr, weights), returns.T @ gr


class SharpeRatio(Function):
    """Mean over standard deviation of a portfolio's returns (periods, assets)."""

    @staticmethod
    def forward(ctx, returns, weights):
        port = returns.matmul(weights)
        mu, sigma = port.mean(), port.std()
        ctx.save_for_backward(returns, weights, port, mu, sigma)
        return mu / sigma

    @staticmethod
    def backward(ctx, grad_output):
        returns, weights, port, mu, sigma = ctx.saved_tensors
        n = port.numel()
        grad_mu = grad_output / sigma
        grad_sigma = -grad_output * mu / sigma**2
        grad_port = grad_mu / n + grad_sigma * (port - mu) / (n * sigma)
        return grad_port.unsqueeze(1) * weights, returns.t().matmul(grad_port)


def growth_of_bets(stakes, odds, p):
    return p @ torch.log1p(odds @ stakes)


class GrowthOfBetsFunction(Function):
    @staticmethod
    def forward(ctx, stakes, odds, p):
        wealth = 1 + odds @ stakes
        ctx.save_for_backward(stakes, odds, p, wealth)
        return p @ wealth.log()

    @staticmethod
    def backward(ctx, g):
        stakes, odds, p, wealth = ctx.saved_tensors
        gw = g * p / wealth
        return odds.T @ gw, torch.outer(gw, stakes), g * wealth.log()


class KellyGrowth(Function):
    """Expected log growth of stakes (bets,) with payoffs (outcomes, bets) of probability p (outcomes,)."""

    @staticmethod
    def forward(ctx, f, payoff, p):
        w = 1 + payoff @ f
        ctx.save_for_backward(f, payoff, p, w)
        return (p * torch.log(w)).sum()

    @staticmethod
    def backward(ctx, grad_output):
        f, payoff, p, w = ctx.saved_tensors
        grad_w = grad_output / w
        grad_f = payoff.t() @ (p * grad_w)
        grad_payoff = grad_w[:, None] * f[None, :]
        grad_p = grad_output * torch.log(w)
        return grad_f, grad_payoff, grad_p


def output_of_factors(capital, labour, share, rho):
    return (share * capital**rho + (1 - share) * labour**rho) ** (1 / rho)


class OutputOfFactorsFunction(Function):
    @staticmethod
    def forward(ctx, capital, labour, share, rho):
        s = share * capital**rho + (1 - share) * labour**rho
        y = s ** (1 / rho)
        ctx.save_for_backward(capital, labour, share, rho, s, y)
        return y

    @staticmethod
    def backward(ctx, g):
        k, n, a, rho, s, y = ctx.saved_tensors
        gs = g * y / (s * rho)
        kr, nr = k**rho, n**rho
        grad_rho = gs * (a * kr * k.log() + (1 - a) * nr * n.log()) - g * y * s.log() / rho**2
        return gs * a * rho * kr / k, gs * (1 - a) * rho * nr / n, (gs * (kr - nr)).sum(), grad_rho.sum()


class CESProduction(Function):
    """Production with a constant elasticity of substitution."""

    @staticmethod
    def forward(ctx, K, L, a, rho):
        inner = a * K.pow(rho) + (1 - a) * L.pow(rho)
        ctx.save_for_backward(K, L, a, rho, inner)
        return inner.pow(1 / rho)

    @staticmethod
    def backward(ctx, grad_y):
        K, L, a, rho, inner = ctx.saved_tensors
        grad_inner = grad_y / rho * inner.pow(1 / rho - 1)
        grad_K = grad_inner * a * rho * K.pow(rho - 1)
        grad_L = grad_inner * (1 - a) * rho * L.pow(rho - 1)
        grad_a = (grad_inner * (K.pow(rho) - L.pow(rho))).sum()
        grad_rho = (grad_inner * (a * K.pow(rho) * K.log() + (1 - a) * L.pow(rho) * L.log())).sum()
        return grad_K, grad_L, grad_a, grad_rho


OPERATIONS = [
    Operation(
        "payment for a loan, product above the line",
        LoanPaymentFunction,
        AnnuityPayment,
        loan_payment,
        lambda: {"principal": torch.rand(5) + 1, "rate": torch.rand(5) * 0.1 + 0.02},
        named="rate: top is rate * growth, a product; the term rate * d_growth is missing in d_top",
        kinds=("missing term", "step left out", "wrong intermediate value"),
        named_words=(r"d_top", r"product rule", r"missing|left out|leaves out"),
        located=(r"gradient of rate\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "growth of bets, chances in the payoffs' gradient",
        GrowthOfBetsFunction,
        KellyGrowth,
        growth_of_bets,
        lambda: {"stakes": torch.rand(3) / 4, "odds": torch.rand(5, 3) * 2 - 0.5, "p": torch.randn(5).softmax(0)},
        named="odds: the gradient lacks the factor p, the probability of each outcome",
        kinds=("step left out", "factor by element", "another operand", "missing term"),
        named_words=(r"\bp\b", r"probabilit|chance"),
        located=(r"gradient of (odds|payoff)\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "reward for risk, divisor of the deviation",
        RewardForRiskFunction,
        SharpeRatio,
        reward_for_risk,
        lambda: {"returns": torch.randn(6, 3) + 0.5, "weights": torch.randn(3).softmax(0)},
        named="both gradients: std divides by n - 1; its derivative here divides by n",
        kinds=("factor of one term", "constant factor", "another operand"),
        named_words=(r"n - 1", r"\bn\b", r"5 ?/ ?6|6 ?/ ?5|0\.833|1\.2\b", r"unbiased"),
        located=(r"gradients? of (returns|weights)\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "output of two factors, exponent outside",
        OutputOfFactorsFunction,
        CESProduction,
        output_of_factors,
        lambda: {
            "capital": torch.rand(5) + 0.5,
            "labour": torch.rand(5) + 1,
            "share": torch.rand(()) / 2 + 0.2,
            "rho": torch.rand(()) / 2 + 0.3,
        },
        named="rho: the outer exponent 1 / rho depends on it too; the term with log(inner) / rho^2 is missing",
        kinds=("missing term", "step left out"),
        named_words=(r"missing|left out|leaves out", r"log\(?.*inner|1 ?/ ?rho|rho ?\*\* ?2"),
        located=(r"gradient of rho\b",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
