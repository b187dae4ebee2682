"""Money over time: a curve of interest rates, the deepest loss, ratings of players who may draw."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

MATURITIES = torch.tensor([0.5, 1.0, 2.0, 5.0])
GAMES = torch.tensor([[0, 1], [2, 0], [1, 3], [3, 4], [4, 0], [2, 3]])
RESULTS = torch.tensor([0, 2, 1, 0, 2, 1])


def interest_rates(level, tau):
    x = MATURITIES.to(tau) / tau[:, None]
    slope = (1 - torch.exp(-x)) / x
    return level[:, :1] + level[:, 1:2] * slope + level[:, 2:] * (slope - torch.exp(-x))


class InterestRatesFunction(Function):
    @staticmethod
    def forward(ctx, level, tau):
        ctx.save_for_backward(level, tau)
        return interest_rates(level, tau)

    @staticmethod
    def backward(ctx, g):
        level, tau = ctx.saved_tensors
        x = MATURITIES.to(tau) / tau[:, None]
        decay = torch.exp(-x)
        slope = (1 - decay) / x
        grad_level = torch.stack([g.sum(1), (g * slope).sum(1), (g * (slope - decay)).sum(1)], 1)
        of_slope = (decay - slope) / x
        to_x = g * ((level[:, 1:2] + level[:, 2:]) * of_slope + level[:, 2:] * decay)
        return grad_level, -(to_x * x).sum(1) / tau


class NelsonSiegel(Function):
    @staticmethod
    def forward(ctx, beta, tau):
        m = MATURITIES.to(tau)
        x = m / tau.unsqueeze(1)
        e = torch.exp(-x)
        load1 = (1 - e) / x
        load2 = load1 - e
        ctx.save_for_backward(beta, tau, x, e, load1, load2)
        return beta[:, 0:1] + beta[:, 1:2] * load1 + beta[:, 2:3] * load2

    @staticmethod
    def backward(ctx, grad_rate):
        beta, tau, x, e, load1, load2 = ctx.saved_tensors
        grad_beta = torch.empty_like(beta)
        grad_beta[:, 0] = grad_rate.sum(1)
        grad_beta[:, 1] = (grad_rate * load1).sum(1)
        grad_beta[:, 2] = (grad_rate * load2).sum(1)
        dload1 = (e * x - (1 - e)) / x**2
        dload2 = dload1 + e
        grad_x = grad_rate * (beta[:, 1:2] * dload1 + beta[:, 2:3] * dload2)
        grad_tau = -(grad_x * MATURITIES.to(tau)).sum(1) / tau
        return grad_beta, grad_tau


def deepest_loss(prices):
    peaks = prices.cummax(1).values
    return (1 - prices / peaks).max(1).values


class DeepestLossFunction(Function):
    @staticmethod
    def forward(ctx, prices):
        ctx.save_for_backward(prices)
        return deepest_loss(prices)

    @staticmethod
    def backward(ctx, g):
        (prices,) = ctx.saved_tensors
        grad = torch.zeros_like(prices)
        for row, (weight, path) in enumerate(zip(g, prices, strict=True)):
            low = int((path / path.cummax(0).values).argmin())
            high = int(path[: low + 1].argmax())
            grad[row, low] -= weight / path[high]
            grad[row, high] += weight * path[low] / path[high] ** 2
        return grad


class MaxDrawdown(Function):
    @staticmethod
    def forward(ctx, x):
        running_max = torch.cummax(x, dim=1)[0]
        drawdown = (running_max - x) / running_max
        mdd, trough = drawdown.max(dim=1)
        ctx.save_for_backward(x, trough)
        return mdd

    @staticmethod
    def backward(ctx, grad_mdd):
        x, trough = ctx.saved_tensors
        peak = x.argmax(dim=1)
        rows = torch.arange(x.size(0), device=x.device)
        top, bottom = x[rows, peak], x[rows, trough]
        grad_x = torch.zeros_like(x)
        grad_x[rows, trough] -= grad_mdd / top
        grad_x[rows, peak] += grad_mdd * bottom / top**2
        return grad_x


def rating_loss(rating, draw):
    first, second = rating[GAMES[:, 0]], rating[GAMES[:, 1]]
    logits = torch.stack([first, draw + (first + second) / 2, second], 1)
    return torch.nn.functional.cross_entropy(logits, RESULTS)


class RatingLossFunction(Function):
    @staticmethod
    def forward(ctx, rating, draw):
        ctx.save_for_backward(rating, draw)
        return rating_loss(rating, draw)

    @staticmethod
    def backward(ctx, g):
        rating, draw = ctx.saved_tensors
        first, second = rating[GAMES[:, 0]], rating[GAMES[:, 1]]
        error = torch.stack([first, draw + (first + second) / 2, second], 1).softmax(1)
        error[torch.arange(len(GAMES)), RESULTS] -= 1
        error = error * g / len(GAMES)
        grad = torch.zeros_like(rating)
        grad = grad.index_add(0, GAMES[:, 0], error[:, 0] + error[:, 1] / 2)
        grad = grad.index_add(0, GAMES[:, 1], error[:, 2] + error[:, 1] / 2)
        return grad, error[:, 1].sum()


class DavidsonLoss(Function):
    """Negative log-likelihood of wins, draws and defeats (Davidson 1970); gradients are made in forward."""

    @staticmethod
    def forward(ctx, s, nu):
        white, black = GAMES.unbind(1)
        logits = torch.stack([s[white], nu + 0.5 * (s[white] + s[black]), s[black]], dim=1)
        log_p = logits - logits.logsumexp(dim=1, keepdim=True)
        n = log_p.size(0)
        onehot = torch.zeros_like(log_p).scatter_(1, RESULTS.unsqueeze(1), 1.0)
        d = (log_p.exp() - onehot) / n
        grad_s = torch.zeros_like(s)
        grad_s.index_add_(0, white, d[:, 0] + 0.5 * d[:, 1])
        grad_s.index_add_(0, black, d[:, 2] + 0.5 * d[:, 1])
        ctx.save_for_backward(grad_s, d[:, 1].sum())
        return -(log_p * onehot).sum() / n

    @staticmethod
    def backward(ctx, grad_output):
        return ctx.saved_tensors


def prices_of_paths():
    return {"prices": (0.4 * torch.randn(5, 7)).cumsum(1).exp()}


OPERATIONS = [
    Operation(
        "curve of interest rates, square of the time constant",
        InterestRatesFunction,
        NelsonSiegel,
        interest_rates,
        lambda: {"level": torch.randn(5, 3), "tau": 0.5 + torch.rand(5)},
        named="tau: the derivative of a maturity over tau is divided by tau, where its square belongs",
        kinds=("another operand", "factor by element", "factor of one term", "step left out"),
        named_words=(r"\btau\b",),
        located=(r"gradient of tau",),
        options={"whole_numbers": False},
    ),
    Operation(
        "deepest loss, peak of the whole path",
        DeepestLossFunction,
        MaxDrawdown,
        deepest_loss,
        prices_of_paths,
        named="the peak is looked for in the whole path, where only that before the trough counts",
        kinds=("another operand", "only at some indices", "only for some values", "permuted"),
        named_words=(r"\bpeak|argmax|\btop\b", r"running|cummax|before|later|after"),
        located=(r"gradient of (prices|x)",),
        options={"whole_numbers": False},
    ),
    Operation(
        "ratings with draws, gradients of forward",
        RatingLossFunction,
        DavidsonLoss,
        rating_loss,
        lambda: {"rating": torch.randn(5), "draw": torch.randn(())},
        named="the gradients made in forward are returned without the incoming gradient",
        kinds=("ignores the incoming gradient",),
        named_words=(r"incoming gradient|grad_output",),
        located=(r"gradient of (rating|s)\b", r"gradient of (draw|nu)\b"),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
