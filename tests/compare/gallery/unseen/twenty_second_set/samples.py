"""Tests of samples: of two means, of independence in a table, of neighbouring residuals."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right


def difference_of_means(first, second):
    variance = first.var(1) / first.size(1) + second.var(1) / second.size(1)
    return (first.mean(1) - second.mean(1)) / variance.sqrt()


class DifferenceOfMeansFunction(Function):
    @staticmethod
    def forward(ctx, first, second):
        error = (first.var(1) / first.size(1) + second.var(1) / second.size(1)).sqrt()
        t = (first.mean(1) - second.mean(1)) / error
        ctx.save_for_backward(first, second, error, t)
        return t

    @staticmethod
    def backward(ctx, g):
        first, second, error, t = ctx.saved_tensors
        grads = []
        for sample, sign in ((first, 1), (second, -1)):
            n = sample.size(1)
            centred = sample - sample.mean(1, keepdim=True)
            to_variance = -0.5 * g * t / error**2 / n
            grads.append((sign * g / error / n)[:, None] + to_variance[:, None] * 2 * centred / (n - 1))
        return tuple(grads)


class WelchT(Function):
    """Welch's t of two groups of samples, a (B, n) and b (B, m)."""

    @staticmethod
    def forward(ctx, a, b):
        n, m = a.shape[1], b.shape[1]
        da, db = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
        se2 = da.pow(2).sum(1) / (n - 1) / n + db.pow(2).sum(1) / (m - 1) / m
        delta = a.mean(1) - b.mean(1)
        ctx.save_for_backward(da, db, se2, delta)
        return delta / se2.sqrt()

    @staticmethod
    def backward(ctx, grad_t):
        da, db, se2, delta = ctx.saved_tensors
        n, m = da.shape[1], db.shape[1]
        grad_delta = (grad_t / se2.sqrt()).unsqueeze(1)
        grad_se2 = (-0.5 * grad_t * delta * se2.pow(-1.5)).unsqueeze(1)
        grad_a = grad_delta / n + grad_se2 * 2 * da / (n * n)
        grad_b = -grad_delta / m + grad_se2 * 2 * db / (m * m)
        return grad_a, grad_b


def independence(table):
    expected = table.sum(2, keepdim=True) * table.sum(1, keepdim=True) / table.sum((1, 2), keepdim=True)
    return ((table - expected) ** 2 / expected).sum((1, 2))


class IndependenceFunction(Function):
    """Chi square as total * (sum of n_ij^2 / (row * column) - 1)."""

    @staticmethod
    def forward(ctx, table):
        ctx.save_for_backward(table)
        return independence(table)

    @staticmethod
    def backward(ctx, g):
        (table,) = ctx.saved_tensors
        rows, columns = table.sum(2, keepdim=True), table.sum(1, keepdim=True)
        total = table.sum((1, 2), keepdim=True)
        shares = table**2 / (rows * columns)
        grad = 2 * table / (rows * columns) - shares.sum(2, keepdim=True) / rows
        grad = total * (grad - shares.sum(1, keepdim=True) / columns) + shares.sum((1, 2), keepdim=True) - 1
        return g[:, None, None] * grad


class ChiSquare(Function):
    """Pearson's statistic of contingency tables, obs (B, R, C)."""

    @staticmethod
    def forward(ctx, obs):
        row = obs.sum(-1, keepdim=True)
        col = obs.sum(-2, keepdim=True)
        exp = row * col / obs.sum((-1, -2), keepdim=True)
        ctx.save_for_backward(obs, exp)
        return ((obs - exp).square() / exp).sum((-1, -2))

    @staticmethod
    def backward(ctx, grad_stat):
        obs, exp = ctx.saved_tensors
        return grad_stat[:, None, None] * 2 * (obs - exp) / exp


def neighbouring_residuals(residuals):
    return residuals.diff(dim=1).square().sum(1) / residuals.square().sum(1)


class DurbinWatson(Function):
    @staticmethod
    def forward(ctx, e):
        d = e[:, 1:] - e[:, :-1]
        num = (d * d).sum(1)
        den = (e * e).sum(1)
        ctx.save_for_backward(e, d, num, den)
        return num / den

    @staticmethod
    def backward(ctx, grad_dw):
        e, d, num, den = ctx.saved_tensors
        grad_num = torch.zeros_like(e)
        grad_num[:, 1:] += 2 * d
        grad_num[:, :-1] += 2 * d
        grad_den = 2 * e
        grad_e = (grad_num * den[:, None] - num[:, None] * grad_den) / (den * den)[:, None]
        return grad_dw[:, None] * grad_e


OPERATIONS = [
    Operation(
        "difference of two means, number less one",
        DifferenceOfMeansFunction,
        WelchT,
        difference_of_means,
        lambda: {"first": torch.randn(3, 5), "second": torch.randn(3, 7) + 0.5},
        named="both: the variance is divided by the number less one in forward, and by the number in backward",
        kinds=("factor of one term", "another operand", "wrong sum"),
        named_words=(r"\bn - 1\b|\bm - 1\b", r"4 / 5|0\.8\b|5 / 4|1\.25", r"unbiased|correction"),
        located=(r"gradient of (first|a)\b", r"gradient of (second|b)\b"),
        options={"whole_numbers": False},
    ),
    Operation(
        "independence in a table, expected counts",
        IndependenceFunction,
        ChiSquare,
        independence,
        lambda: {"table": torch.rand(3, 3, 4) + 0.5},
        named="the expected counts are sums of the table too, and their part of the gradient is missing",
        kinds=("missing term", "step left out", "wrong sum"),
        named_words=(r"missing", r"\bexp\b|expected", r"constant|detach|treated"),
        located=(r"gradient of (table|obs)\b",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "neighbouring residuals, sign of the earlier one",
            DurbinWatson.apply,
            neighbouring_residuals,
            lambda: {"residuals": torch.randn(4, 6)},
            whole_numbers=False,
        ),
        named="the earlier of two neighbours is subtracted in forward, and its part has the sign of the later one",
        kinds=("factor of one term", "wrong sum", "missing term"),
        named_words=(r"sign", r"factor -1|by -1|negat", r"-= ?2 \* d|grad_num\[:, :-1\]"),
        located=(r"gradient of (residuals|e)\b",),
    ),
]
