"""Networks and orders: energies of springs, covariances that are propagated, spread by the order of a sample."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

EDGES = ((0, 1), (1, 2), (2, 3), (3, 0), (0, 2))


def spring_energies(places, stiffness, rest):
    first, second = torch.tensor(EDGES).T
    return stiffness * ((places[first] - places[second]).norm(dim=1) - rest) ** 2 / 2


class SpringEnergiesFunction(Function):
    @staticmethod
    def forward(ctx, places, stiffness, rest):
        ctx.save_for_backward(places, stiffness, rest)
        return spring_energies(places, stiffness, rest)

    @staticmethod
    def backward(ctx, g):
        places, stiffness, rest = ctx.saved_tensors
        first, second = torch.tensor(EDGES, device=places.device).T
        way = places[first] - places[second]
        length = way.norm(dim=1)
        stretch = length - rest
        pull = (g * stiffness * stretch / length.where(length > 0, 1))[:, None] * way
        to_places = torch.zeros_like(places).index_add(0, first, pull).index_add(0, second, -pull)
        return to_places, g * stretch**2 / 2, -g * stiffness * stretch


class SpringNetwork(Function):
    """Energy of every spring of a mesh: x (V, 3), k (E,) and rest length L (E,) -> (E,)."""

    @staticmethod
    def forward(ctx, x, k, L):
        edges = torch.tensor(EDGES, device=x.device)
        i, j = edges[:, 0], edges[:, 1]
        d = x[i] - x[j]
        length = d.norm(dim=-1)
        ctx.save_for_backward(i, j, d, length, k, L)
        ctx.num_nodes = x.shape[0]
        return 0.5 * k * (length - L).pow(2)

    @staticmethod
    def backward(ctx, grad_energy):
        i, j, d, length, k, L = ctx.saved_tensors
        stretch = length - L
        grad_k = 0.5 * grad_energy * stretch.pow(2)
        grad_L = -grad_energy * k * stretch
        f = (grad_energy * k * stretch / length).unsqueeze(-1) * d
        grad_x = torch.zeros(ctx.num_nodes, d.shape[-1], dtype=d.dtype, device=d.device)
        grad_x[i] += f
        grad_x[j] -= f
        return grad_x, grad_k, grad_L


def propagated(covariances, motion):
    return motion @ covariances @ motion.T


class PropagatedFunction(Function):
    @staticmethod
    def forward(ctx, covariances, motion):
        ctx.save_for_backward(covariances, motion)
        return propagated(covariances, motion)

    @staticmethod
    def backward(ctx, g):
        covariances, motion = ctx.saved_tensors
        to_motion = g @ motion @ covariances.mT + g.mT @ motion @ covariances
        return motion.T @ g @ motion, to_motion.sum(0)


class CovariancePropagation(Function):
    """P <- F P F^T for covariances P (B, n, n) and a transition F (n, n)."""

    @staticmethod
    def forward(ctx, P, F):
        FP = torch.matmul(F, P)
        ctx.save_for_backward(FP, F)
        return torch.matmul(FP, F.t())

    @staticmethod
    def backward(ctx, grad_out):
        FP, F = ctx.saved_tensors
        grad_P = torch.matmul(torch.matmul(F.t(), grad_out), F)
        grad_F = 2 * torch.matmul(grad_out, FP).sum(dim=0)
        return grad_P, grad_F


def spread_by_order(x):
    n = x.size(1)
    weights = (2 * torch.arange(n).to(x) - (n - 1)) / (n * (n - 1))
    return (x.sort(dim=1).values * weights).sum(1)


class SpreadByOrderFunction(Function):
    """The second L-moment, half of the mean distance of two elements."""

    @staticmethod
    def forward(ctx, x):
        values, order = x.sort(dim=1)
        n = x.size(1)
        weights = (2 * torch.arange(n, dtype=x.dtype, device=x.device) - (n - 1)) / (n * (n - 1))
        ctx.save_for_backward(order, weights)
        return values @ weights

    @staticmethod
    def backward(ctx, g):
        order, weights = ctx.saved_tensors
        return torch.zeros_like(order, dtype=g.dtype).scatter(1, order, g[:, None] * weights)


OPERATIONS = [
    Operation(
        "energies of springs, springs that share a place",
        SpringEnergiesFunction,
        SpringNetwork,
        spring_energies,
        lambda: {"places": torch.randn(4, 3), "stiffness": torch.rand(5) + 0.5, "rest": torch.rand(5) + 0.5},
        named="places: of several springs at one place, the indexed sum keeps one, where it should add up all",
        kinds=("only at some indices", "missing term", "wrong sum"),
        named_words=(r"index_add|scatter_add|accumulate", r"repeated|several|more than once|duplicate|overwr"),
        located=(r"gradient of (places|x)\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "propagation of covariances, both factors of the motion",
        PropagatedFunction,
        CovariancePropagation,
        propagated,
        lambda: {"covariances": torch.randn(3, 4, 4), "motion": torch.randn(4, 4)},
        named="motion: twice the left factor's part is right for symmetric matrices only; the right factor's differs",
        kinds=("not transposed", "missing term", "another operand", "wrong sum", "factor of one term"),
        named_words=(r"transpos", r"symmetric", r"grad_out\.(m?T|t\(\)|transpose)"),
        located=(r"gradient of (motion|F)\b",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
RIGHT += [
    Case("spread by order", SpreadByOrderFunction.apply, spread_by_order, lambda: {"x": torch.randn(4, 7)}),
]
