"""Systems: two vectors made orthogonal, the complement of Schur, a line taken out of a series."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right


def frame(a, b):
    first = a / a.norm(dim=1, keepdim=True)
    rest = b - (first * b).sum(1, keepdim=True) * first
    return torch.stack([first, rest / rest.norm(dim=1, keepdim=True)], 1)


def unit_backward(g, unit, length):
    return (g - (g * unit).sum(1, keepdim=True) * unit) / length


class FrameFunction(Function):
    @staticmethod
    def forward(ctx, a, b):
        length = a.norm(dim=1, keepdim=True)
        first = a / length
        along = (first * b).sum(1, keepdim=True)
        rest = b - along * first
        rest_length = rest.norm(dim=1, keepdim=True)
        second = rest / rest_length
        ctx.save_for_backward(b, first, second, along, length, rest_length)
        return torch.stack([first, second], 1)

    @staticmethod
    def backward(ctx, g):
        b, first, second, along, length, rest_length = ctx.saved_tensors
        to_rest = unit_backward(g[:, 1], second, rest_length)
        to_along = -(to_rest * first).sum(1, keepdim=True)
        to_first = g[:, 0] - along * to_rest + to_along * b
        return unit_backward(to_first, first, length), to_rest + to_along * first


class GramSchmidt(Function):
    """First two rows of a rotation from two vectors a, b (B, 3): normalize a, project b, normalize."""

    @staticmethod
    def forward(ctx, a, b):
        na = torch.linalg.vector_norm(a, dim=-1, keepdim=True)
        e1 = a / na
        dot = (e1 * b).sum(-1, keepdim=True)
        u = b - dot * e1
        nu = torch.linalg.vector_norm(u, dim=-1, keepdim=True)
        e2 = u / nu
        ctx.save_for_backward(b, na, e1, nu, e2)
        return torch.stack((e1, e2), dim=1)

    @staticmethod
    def backward(ctx, grad):
        b, na, e1, nu, e2 = ctx.saved_tensors
        g1, g2 = grad[:, 0], grad[:, 1]
        # e2 = u / |u|
        gu = (g2 - e2 * (e2 * g2).sum(-1, keepdim=True)) / nu
        # u = b - dot * e1
        gdot = -(gu * e1).sum(-1, keepdim=True)
        gb = gu + gdot * e1
        g1 = g1 + gdot * b
        # e1 = a / |a|
        ga = (g1 - e1 * (e1 * g1).sum(-1, keepdim=True)) / na
        return ga, gb


def complement(a, b, c, d):
    return d - c @ torch.linalg.solve(a, b)


class ComplementFunction(Function):
    @staticmethod
    def forward(ctx, a, b, c, d):
        ctx.save_for_backward(a, b, c)
        return complement(a, b, c, d)

    @staticmethod
    def backward(ctx, g):
        a, b, c = ctx.saved_tensors
        solved = torch.linalg.solve(a, b)
        to_b = -torch.linalg.solve(a.mT, c.mT @ g)
        return -to_b @ solved.mT, to_b, -g @ solved.mT, g


class SchurComplement(Function):
    """D - C A^-1 B for A (n, n), B (n, m), C (k, n), D (k, m)."""

    @staticmethod
    def forward(ctx, A, B, C, D):
        A_inv = torch.linalg.inv(A)
        ctx.save_for_backward(A_inv, B, C)
        return D - C @ A_inv @ B

    @staticmethod
    def backward(ctx, grad_S):
        A_inv, B, C = ctx.saved_tensors
        grad_A = grad_B = grad_C = grad_D = None
        if ctx.needs_input_grad[0]:
            grad_A = A_inv.T @ C.T @ grad_S @ B.T @ A_inv.T
        if ctx.needs_input_grad[1]:
            grad_B = -(A_inv @ C.T @ grad_S)
        if ctx.needs_input_grad[2]:
            grad_C = -grad_S @ (A_inv @ B).T
        if ctx.needs_input_grad[3]:
            grad_D = grad_S
        return grad_A, grad_B, grad_C, grad_D


def without_line(y, w):
    t = torch.arange(y.size(1)).to(y)
    t = t - (w * t).sum() / w.sum()
    mean = (y @ w / w.sum())[:, None]
    slope = (y @ (w * t) / (w * t * t).sum())[:, None]
    return y - mean - slope * t


class WithoutLineFunction(Function):
    @staticmethod
    def forward(ctx, y, w):
        rest = without_line(y, w)
        ctx.save_for_backward(w, rest)
        return rest

    @staticmethod
    def backward(ctx, g):
        w, rest = ctx.saved_tensors
        t = torch.arange(rest.size(1)).to(rest)
        design = torch.stack([torch.ones_like(t), t], 1)
        normal, right = design.T @ (w[:, None] * design), (g @ design).T
        fitted = torch.linalg.solve(normal.double(), right.double()).to(g).T @ design.T
        return g - fitted * w, -(fitted * rest).sum(0)


class WeightedDetrend(Function):
    """Residual of each row of y (B, T) about its weighted least-squares line, w (T,)."""

    @staticmethod
    def forward(ctx, y, w):
        t = torch.arange(y.shape[1], dtype=y.dtype, device=y.device)
        sw = w.sum()
        tc = t - (w * t).sum() / sw
        stt = (w * tc**2).sum()
        mean = (y * w).sum(1, keepdim=True) / sw
        slope = (y * w * tc).sum(1, keepdim=True) / stt
        resid = y - mean - slope * tc
        ctx.save_for_backward(w, tc, sw, stt, resid)
        return resid

    @staticmethod
    def backward(ctx, grad):
        w, tc, sw, stt, resid = ctx.saved_tensors
        g_mean = grad.sum(1, keepdim=True) / sw
        g_slope = (grad * tc).sum(1, keepdim=True) / stt
        grad_y = grad - w * g_mean
        grad_w = -((g_mean + g_slope * tc) * resid).sum(0)
        return grad_y, grad_w


OPERATIONS = [
    Operation(
        "two vectors made orthogonal, multiple of the first",
        FrameFunction,
        GramSchmidt,
        frame,
        lambda: {"a": torch.randn(4, 3), "b": torch.randn(4, 3)},
        named="a: in u = b - dot * e1 the second e1 is taken as a constant, so the term -dot * gu is missing",
        kinds=("missing term", "step left out"),
        named_words=(r"missing|left out|lacks|not added", r"\b(dot|along)\b"),
        located=(r"gradient of a\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "complement of Schur, inverse in the gradient of the right block",
        ComplementFunction,
        SchurComplement,
        complement,
        lambda: {
            "a": torch.randn(3, 3) + 4 * torch.eye(3),
            "b": torch.randn(3, 2),
            "c": torch.randn(2, 3),
            "d": torch.randn(2, 2),
        },
        named="b: A^-1 is not transposed",
        kinds=("not transposed",),
        named_words=(r"transpos", r"\.(T|mT|t\(\))"),
        located=(r"gradient of b\b",),
    ),
    Operation(
        "series without its line, slope",
        WithoutLineFunction,
        WeightedDetrend,
        without_line,
        lambda: {"y": torch.randn(3, 6), "w": 0.5 + torch.rand(6)},
        named="y: only the mean's part is subtracted, the term of the slope is missing",
        kinds=("missing term",),
        named_words=(r"slope", r"missing|left out|lacks|not (added|subtracted)"),
        located=(r"gradient of y\b",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
