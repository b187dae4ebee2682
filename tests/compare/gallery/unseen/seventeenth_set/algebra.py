"""Algebra: sums over all products of k elements, an exponential by squaring, products of all pairs of features."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

DEGREE = 3
TERMS, SQUARINGS = 8, 2


def sums_of_products(x):
    sums = [torch.ones_like(x[:, 0])] + [torch.zeros_like(x[:, 0])] * DEGREE
    for each in x.unbind(1):
        sums = [sums[0]] + [sums[k] + each * sums[k - 1] for k in range(1, DEGREE + 1)]
    return torch.stack(sums[1:], 1)


class SumsOfProductsFunction(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return sums_of_products(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        grad = torch.empty_like(x)
        for n in range(x.size(1)):
            others = sums_of_products(torch.cat([x[:, :n], x[:, n + 1 :]], 1))
            grad[:, n] = g[:, 0] + (g[:, 1:] * others[:, :-1]).sum(1)
        return grad


class ElementarySymmetric(Function):
    """e_1 .. e_k of each row, as in the normalizer of a k-DPP."""

    @staticmethod
    def forward(ctx, lam):
        B, n = lam.shape
        e = torch.zeros(B, DEGREE + 1, dtype=lam.dtype, device=lam.device)
        e[:, 0] = 1
        tables = []
        for i in range(n):
            tables.append(e)
            for k in range(DEGREE, 0, -1):
                e[:, k] += lam[:, i] * e[:, k - 1]
        ctx.save_for_backward(lam, *tables)
        return e[:, 1:].clone()

    @staticmethod
    def backward(ctx, grad_e):
        lam, *tables = ctx.saved_tensors
        grad_lam = torch.zeros_like(lam)
        adj = torch.cat([torch.zeros_like(grad_e[:, :1]), grad_e], dim=1)
        for i in reversed(range(lam.size(1))):
            grad_lam[:, i] = (adj[:, 1:] * tables[i][:, :-1]).sum(dim=1)
            carried = adj[:, 1:] * lam[:, i : i + 1]
            adj = adj + torch.cat([carried, torch.zeros_like(adj[:, :1])], dim=1)
        return grad_lam


def exponential(a):
    x = a / 2**SQUARINGS
    term = total = torch.eye(a.size(-1), dtype=a.dtype, device=a.device).expand_as(a)
    for n in range(1, TERMS + 1):
        term = term @ x / n
        total = total + term
    for _ in range(SQUARINGS):
        total = total @ total
    return total


class ExponentialFunction(Function):
    @staticmethod
    def forward(ctx, a):
        x = a / 2**SQUARINGS
        powers = [torch.eye(a.size(-1), dtype=a.dtype, device=a.device).expand_as(a)]
        for n in range(1, TERMS + 1):
            powers.append(powers[-1] @ x / n)
        squares = [sum(powers)]
        for _ in range(SQUARINGS):
            squares.append(squares[-1] @ squares[-1])
        ctx.save_for_backward(x, *powers, *squares)
        return squares[-1]

    @staticmethod
    def backward(ctx, g):
        x, *kept = ctx.saved_tensors
        powers, squares = kept[: TERMS + 1], kept[TERMS + 1 :]
        for root in reversed(squares[:-1]):
            g = g @ root.mT + root.mT @ g
        to_x, to_power = torch.zeros_like(x), torch.zeros_like(x)
        for n in range(TERMS, 0, -1):
            to_power = (to_power + g) / n
            to_x = to_x + powers[n - 1].mT @ to_power
            to_power = to_power @ x.mT
        return to_x / 2**SQUARINGS


class ExpmScalingSquaring(Function):
    @staticmethod
    def forward(ctx, A):
        B = A / 2**SQUARINGS
        eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
        # Horner: I + B (I + B/2 (I + B/3 (...)))
        ctx.horner = [eye.expand_as(A)]
        for n in range(TERMS, 0, -1):
            ctx.horner.append(eye + B @ ctx.horner[-1] / n)
        ctx.squares = [ctx.horner[-1]]
        for _ in range(SQUARINGS):
            S = ctx.squares[-1]
            ctx.squares.append(S @ S)
        ctx.save_for_backward(B)
        return ctx.squares[-1].clone()

    @staticmethod
    def backward(ctx, G):
        (B,) = ctx.saved_tensors
        for k in range(SQUARINGS, 0, -1):
            S = ctx.squares[k].transpose(-1, -2)
            G = G @ S + S @ G
        grad_B = torch.zeros_like(B)
        for n in range(1, TERMS + 1):
            H = ctx.horner[TERMS - n]
            grad_B = grad_B + G @ H.transpose(-1, -2) / n
            G = B.transpose(-1, -2) @ G / n
        return grad_B / 2**SQUARINGS


def pairs_of_features(x, v):
    return ((x @ v).square() - x.square() @ v.square()).sum(1) / 2


class FactorizationMachine(Function):
    """Second-order term: sum over i < j of <v_i, v_j> x_i x_j."""

    @staticmethod
    def forward(ctx, x, v):
        xv = x @ v
        ctx.save_for_backward(x, v, xv)
        return 0.5 * (xv * xv - (x * x) @ (v * v)).sum(dim=1)

    @staticmethod
    def backward(ctx, grad):
        x, v, xv = ctx.saved_tensors
        grad = grad.unsqueeze(1)
        grad_x = grad * (xv @ v.t() - x * (v * v).sum(dim=1))
        grad_v = x.t() @ (grad * xv) - v * (x.t() @ grad)
        return grad_x, grad_v


OPERATIONS = [
    Operation(
        "sums over products of k elements, tables without copies",
        SumsOfProductsFunction,
        ElementarySymmetric,
        sums_of_products,
        lambda: {"x": torch.randn(4, 5)},
        named="forward keeps one table at every step and changes it in place, so backward sees the last state only",
        kinds=("another operand", "wrong intermediate value", "change of the source"),
        named_words=(r"clone", r"in.?place|same tensor|last", r"tables?\b|\be\b"),
        located=(r"gradient of (x|lam)\b",),
    ),
    Operation(
        "exponential by squaring, square for its root",
        ExponentialFunction,
        ExpmScalingSquaring,
        exponential,
        lambda: {"a": torch.randn(3, 3, 3)},
        named="the derivative of a square is taken at the square, not at the matrix that was squared",
        kinds=("another operand", "wrong intermediate value"),
        named_words=(r"squares", r"\bk\b|\bS\b", r"SQUARINGS"),
        located=(r"gradient of (a|A)\b",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "products of all pairs of features, square of a feature",
            FactorizationMachine.apply,
            pairs_of_features,
            lambda: {"x": torch.randn(5, 4), "v": torch.randn(4, 3)},
        ),
        named="v: the products of a feature with itself have the square of x as their factor, and x stands there",
        kinds=("another operand", "factor of one term", "missing term", "step left out"),
        named_words=(r"\bx\b.*\bx\b", r"square|\*\* ?2"),
        located=(r"gradient of v\b",),
    ),
]
