"""Matrices: products of blocks, a layer that is its own input, the cost of one graph moved onto another."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

STEPS = 80


def product_of_blocks(a, b):
    return (a[:, None, :, None] * b[None, :, None, :]).reshape(len(a) * len(b), -1)


class ProductOfBlocksFunction(Function):
    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return product_of_blocks(a, b)

    @staticmethod
    def backward(ctx, g):
        a, b = ctx.saved_tensors
        grad_a, grad_b = torch.empty_like(a), torch.zeros_like(b)
        height, width = b.shape
        for i in range(a.shape[0]):
            for j in range(a.shape[1]):
                block = g[i * height : (i + 1) * height, j * width : (j + 1) * width]
                grad_a[i, j] = (block * b).sum()
                grad_b += block * a[i, j]
        return grad_a, grad_b


class KroneckerProduct(Function):
    @staticmethod
    def forward(ctx, A, B):
        ctx.save_for_backward(A, B)
        return torch.kron(A, B)

    @staticmethod
    def backward(ctx, grad):
        A, B = ctx.saved_tensors
        (m, n), (p, q) = A.shape, B.shape
        blocks = grad.reshape(p, m, q, n)
        grad_A = torch.einsum("pmqn,pq->mn", blocks, B)
        grad_B = torch.einsum("pmqn,mn->pq", blocks, A)
        return grad_A, grad_B


def equilibrium(x, weight):
    z = torch.zeros_like(x)
    for _ in range(STEPS):
        z = torch.tanh(z @ weight.T + x)
    return z


class EquilibriumFunction(Function):
    @staticmethod
    def forward(ctx, x, weight):
        z = equilibrium(x, weight)
        ctx.save_for_backward(weight, z)
        return z

    @staticmethod
    def backward(ctx, g):
        weight, z = ctx.saved_tensors
        slope = 1 - z**2
        to_state = g
        for _ in range(STEPS):
            to_state = g + (to_state * slope) @ weight
        to_x = to_state * slope
        return to_x, to_x.T @ z


class DEQ(Function):
    """Deep equilibrium layer (Bai et al. 2019): backward iterates with the Jacobian at z."""

    @staticmethod
    def forward(ctx, x, W):
        z = torch.tanh(x)
        for _ in range(STEPS):
            z = torch.tanh(torch.nn.functional.linear(z, W) + x)
        ctx.save_for_backward(z, W)
        return z

    @staticmethod
    def backward(ctx, grad_z):
        z, W = ctx.saved_tensors
        d = 1 - z * z
        J = d.unsqueeze(2) * W.unsqueeze(0)
        u = grad_z
        for _ in range(STEPS):
            u = grad_z + torch.bmm(J, u.unsqueeze(2)).squeeze(2)
        grad_x = u * d
        return grad_x, grad_x.t() @ z


def cost_of_moving(near, far, plan):
    difference = near[:, None, :, None] - far[None, :, None, :]
    return torch.einsum("ijkl,ij,kl->", difference**2, plan, plan)


class GromovWasserstein(Function):
    @staticmethod
    def forward(ctx, C1, C2, T):
        ctx.save_for_backward(C1, C2, T)
        p, q = T.sum(1), T.sum(0)
        const = p @ (C1**2) @ p + q @ (C2**2) @ q
        return const - 2 * (C1 * (T @ C2 @ T.t())).sum()

    @staticmethod
    def backward(ctx, grad_cost):
        C1, C2, T = ctx.saved_tensors
        p, q = T.sum(1), T.sum(0)
        grad_C1 = 2 * C1 * torch.outer(p, p) - 2 * T @ C2 @ T.t()
        grad_C2 = 2 * C2 * torch.outer(q, q) - 2 * T.t() @ C1 @ T
        const = (C1**2 @ p)[:, None] + (C2**2 @ q)[None, :]
        grad_T = 2 * const - 4 * C1 @ T @ C2.t()
        return grad_cost * grad_C1, grad_cost * grad_C2, grad_cost * grad_T


OPERATIONS = [
    Operation(
        "products of blocks, order of the indices",
        ProductOfBlocksFunction,
        KroneckerProduct,
        product_of_blocks,
        lambda: {"a": torch.randn(2, 3), "b": torch.randn(3, 2)},
        named="the rows and columns are split in the order (b, a), where the blocks have the order (a, b)",
        kinds=("permuted", "transposed", "wrong sum", "only at some indices"),
        named_words=(r"order|permut", r"\bm, p\b|p, m|reshape|view|unflatten", r"strid|interleav"),
        located=(r"gradient of (a|A)\b", r"gradient of (b|B)\b"),
    ),
    Operation(
        "layer that is its own input, Jacobian not transposed",
        EquilibriumFunction,
        DEQ,
        equilibrium,
        lambda: {"x": torch.randn(3, 4), "weight": 0.15 * torch.randn(4, 4)},
        named="the steps of backward multiply by the Jacobian, where its transpose belongs",
        kinds=("not transposed", "transposed", "another operand"),
        named_words=(r"transpos", r"\.mT|\.T\b|\.t\(\)"),
        located=(r"gradient of x", r"gradient of (weight|W)\b"),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "one graph moved onto another, as if symmetric",
            GromovWasserstein.apply,
            cost_of_moving,
            lambda: {"near": torch.randn(3, 3), "far": torch.randn(4, 4), "plan": torch.rand(3, 4)},
        ),
        named="plan: both matrices are taken for symmetric, so the two uses of the plan have equal gradients",
        kinds=("missing term", "not transposed", "transposed", "another operand"),
        named_words=(r"transpos", r"symmetric", r"missing", r"\.mT|\.T\b|\.t\(\)"),
        located=(r"gradient of (plan|T)\b",),
    ),
]
