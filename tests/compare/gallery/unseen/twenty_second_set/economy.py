"""Economy: growth of capital, returns over the losses' size, utility of what is consumed."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

YEARS, WEAR = 4, 0.1


def capital(start, saving, exponent):
    path = [start]
    for _ in range(YEARS):
        path.append((1 - WEAR) * path[-1] + saving * path[-1] ** exponent)
    return torch.stack(path[1:], 1)


class CapitalFunction(Function):
    @staticmethod
    def forward(ctx, start, saving, exponent):
        path = capital(start, saving, exponent)
        ctx.save_for_backward(start, saving, exponent, path)
        return path

    @staticmethod
    def backward(ctx, g):
        start, saving, exponent, path = ctx.saved_tensors
        to_now, to_saving, to_exponent = torch.zeros_like(start), torch.zeros_like(start), torch.zeros_like(start)
        before = torch.cat([start[:, None], path[:, :-1]], 1)
        for year in range(YEARS - 1, -1, -1):
            to_now = to_now + g[:, year]
            made = before[:, year] ** exponent
            to_saving = to_saving + to_now * made
            to_exponent = to_exponent + to_now * saving * made * before[:, year].log()
            to_now = to_now * (1 - WEAR + saving * exponent * before[:, year] ** (exponent - 1))
        return to_now, to_saving, to_exponent


class SolowPath(Function):
    """Capital per head of B countries over YEARS years: k <- (1 - WEAR) k + s k^alpha."""

    @staticmethod
    def forward(ctx, k0, s, alpha):
        k = k0.clone()
        states, path = [], []
        for _ in range(YEARS):
            k = (1 - WEAR) * k + s * k.pow(alpha)
            states.append(k)
            path.append(k)
        ctx.save_for_backward(s, alpha, *states)
        return torch.stack(path, dim=1)

    @staticmethod
    def backward(ctx, grad_path):
        s, alpha, *states = ctx.saved_tensors
        grad_s, grad_alpha = torch.zeros_like(s), torch.zeros_like(alpha)
        grad_k = torch.zeros_like(s)
        for t in reversed(range(YEARS)):
            k = states[t]
            grad_k = grad_k + grad_path[:, t]
            output = k.pow(alpha)
            grad_s += grad_k * output
            grad_alpha += grad_k * s * output * torch.log(k)
            grad_k = grad_k * ((1 - WEAR) + s * alpha * k.pow(alpha - 1))
        return grad_k, grad_s, grad_alpha


def return_over_losses(returns, target):
    excess = returns - target
    return excess.mean(1) / excess.clamp(max=0).square().mean(1).sqrt()


class ReturnOverLossesFunction(Function):
    @staticmethod
    def forward(ctx, returns, target):
        ctx.save_for_backward(returns, target)
        return return_over_losses(returns, target)

    @staticmethod
    def backward(ctx, g):
        returns, target = ctx.saved_tensors
        excess = returns - target
        losses = excess.clamp(max=0)
        size = losses.square().mean(1, keepdim=True).sqrt()
        ratio = excess.mean(1, keepdim=True) / size
        grad = g[:, None] / excess.size(1) * (1 - ratio * losses / size) / size
        return grad, -grad.sum()


class SortinoRatio(Function):
    """Mean excess return over the downside deviation, r (B, T) and a scalar target."""

    @staticmethod
    def forward(ctx, r, target):
        ex = r - target
        mean = ex.mean(dim=1)
        down = torch.where(ex < 0, ex, torch.zeros_like(ex))
        dd = (down**2).mean(dim=1).sqrt()
        ctx.save_for_backward(ex, mean, dd)
        return mean / dd

    @staticmethod
    def backward(ctx, grad_out):
        ex, mean, dd = ctx.saved_tensors
        T = ex.shape[1]
        grad_mean = grad_out / dd
        grad_dd = -grad_out * mean / dd**2
        grad_ex = grad_mean[:, None].expand_as(ex) / T
        grad_ex = grad_ex + grad_dd[:, None] * ex / (T * dd[:, None])
        return grad_ex, -grad_ex.sum()


def utility(consumption, aversion):
    return (consumption ** (1 - aversion) - 1) / (1 - aversion)


class CRRAUtility(Function):
    """u(c) = (c^(1 - gamma) - 1) / (1 - gamma) of c (B, N), with a gamma (N,) for each agent."""

    @staticmethod
    def forward(ctx, c, gamma):
        power = c ** (1 - gamma)
        ctx.save_for_backward(c, gamma, power)
        return (power - 1) / (1 - gamma)

    @staticmethod
    def backward(ctx, grad_u):
        c, gamma, power = ctx.saved_tensors
        grad_c = grad_u * c ** (-gamma)
        du_dgamma = -torch.log(c) * power / (1 - gamma)
        return grad_c, (grad_u * du_dgamma).sum(0)


OPERATIONS = [
    Operation(
        "growth of capital, year of the capital",
        CapitalFunction,
        SolowPath,
        capital,
        lambda: {
            "start": torch.rand(5) * 2 + 0.3,
            "saving": torch.rand(5) * 0.4 + 0.1,
            "exponent": torch.rand(5) * 0.5 + 0.2,
        },
        named="forward keeps the capital after each year, and backward needs that before it",
        kinds=("another operand", "wrong intermediate value", "shifted"),
        named_words=(r"\bstates\b", r"\bk0\b", r"before|earlier|previous|shifted"),
        located=(r"gradient of (start|k0)\b", r"gradient of (saving|s)\b", r"gradient of (exponent|alpha)\b"),
        options={"whole_numbers": False},
    ),
    Operation(
        "return over the losses' size, gains",
        ReturnOverLossesFunction,
        SortinoRatio,
        return_over_losses,
        lambda: {"returns": torch.randn(4, 9), "target": torch.tensor(0.5)},
        named="only losses count in the divisor, and backward gives the gains their part of it too",
        kinds=("only for some values", "wrong sum", "another operand", "missing term"),
        named_words=(r"mask|where|clamp", r"\bdown\b", r"ex (<|>) ?0|only (where|for)|positive|negative"),
        located=(r"gradient of (returns|r)\b",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "utility of consumption, divisor",
            CRRAUtility.apply,
            utility,
            lambda: {"consumption": torch.rand(4, 3) * 2 + 0.4, "aversion": torch.rand(3) * 2 + 1.3},
            whole_numbers=False,
        ),
        named="aversion: it stands in the divisor as well, and the term of the quotient rule for it is missing",
        kinds=("missing term", "step left out", "wrong sum"),
        named_words=(r"missing", r"power - 1|quotient|divisor", r"\(1 - gamma\) ?\*\* ?2|square|constant"),
        located=(r"gradient of (aversion|gamma)\b",),
    ),
]
