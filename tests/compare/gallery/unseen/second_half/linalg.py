"""Linear algebra: triangular systems, quadratic forms, linear systems."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right


def shifted(a):
    """Add 5 times the identity, so that systems of equations are well conditioned."""
    return a + 5 * torch.eye(a.shape[-1], dtype=a.dtype)


class TriangularSolve(Function):
    """Solution x of L x = b; L is the lower triangle of a (N, N), b is (N, K)."""

    @staticmethod
    def forward(ctx, a, b):
        x = torch.linalg.solve_triangular(a, b, upper=False)
        ctx.save_for_backward(a, x)
        return x

    @staticmethod
    def grads(ctx, g):
        a, x = ctx.saved_tensors
        grad_b = torch.linalg.solve_triangular(a.t(), g, upper=True)
        return -grad_b @ x.t(), grad_b

    @staticmethod
    def backward(ctx, g):
        grad_a, grad_b = TriangularSolve.grads(ctx, g)
        return grad_a.tril(), grad_b


class TriangularSolveWrong(TriangularSolve):
    @staticmethod
    def backward(ctx, g):
        return TriangularSolve.grads(ctx, g)


class QuadraticForm(Function):
    """y[n] = x[n]^T a x[n] for x (N, D) and a (D, D)."""

    @staticmethod
    def forward(ctx, x, a):
        ctx.save_for_backward(x, a)
        return ((x @ a) * x).sum(1)

    @staticmethod
    def backward(ctx, g):
        x, a = ctx.saved_tensors
        return g[:, None] * (x @ a + x @ a.t()), (g[:, None] * x).t() @ x


class QuadraticFormWrong(QuadraticForm):
    @staticmethod
    def backward(ctx, g):
        x, a = ctx.saved_tensors
        return 2 * g[:, None] * (x @ a.t()), (g[:, None] * x).t() @ x


class Solve(Function):
    """Solution x of a x = b for a (N, N) and b (N, K)."""

    @staticmethod
    def forward(ctx, a, b):
        x = torch.linalg.solve(a, b)
        ctx.save_for_backward(a, x)
        return x

    @staticmethod
    def backward(ctx, g):
        a, x = ctx.saved_tensors
        grad_b = torch.linalg.solve(a.t(), g)
        return -grad_b @ x.t(), grad_b


class SolveWrong(Solve):
    @staticmethod
    def backward(ctx, g):
        a, x = ctx.saved_tensors
        grad_b = torch.linalg.solve(a.t(), g)
        return grad_b @ x.t(), grad_b


OPERATIONS = [
    Operation(
        "triangular system",
        TriangularSolve,
        TriangularSolveWrong,
        lambda a, b: torch.linalg.solve(shifted(a).tril(), b),
        lambda: {"a": torch.randn(4, 4), "b": torch.randn(4, 3)},
        named="the elements above the diagonal must be 0",
        kinds=(),
        named_words=(
            r"(above|upper|over) .*(diagonal|triang)",
            r"triang",
            r"i ?< ?j|j ?> ?i",
            r"(expected|should be|must be|instead of) (is )?(0|zero)",
        ),
        located=(r"gradient of a\b", r"(above|upper|over) .*(diagonal|triang)|i ?< ?j|j ?> ?i|triang"),
        call=lambda apply, a, b: apply(shifted(a), b),
    ),
    Operation(
        "quadratic form",
        QuadraticForm,
        QuadraticFormWrong,
        lambda x, a: ((x @ a) * x).sum(1),
        lambda: {"x": torch.randn(5, 3), "a": torch.randn(3, 3)},
        named="2 a x instead of (a + a^T) x: right only for symmetric a",
        kinds=("transposed", "missing term"),
        named_words=(
            r"symmetric",
            r"a ?(\+|and) ?(a(\^T|\.t\(\)|ᵀ)|its transpose)",
            r"transpos",
            r"(second|one|other|another|first) use",
            r"use[sd]? .*(twice|more than once)",
        ),
        located=(r"gradient of x",),
    ),
    Operation(
        "linear system",
        Solve,
        SolveWrong,
        lambda a, b: torch.linalg.solve(shifted(a), b),
        lambda: {"a": torch.randn(4, 4), "b": torch.randn(4, 3)},
        named="the gradient of a has the wrong sign",
        kinds=("constant factor",),
        named_words=(r"\bsign\b", r"negative of|negated", r"(-|−|minus )(1|one)?\b.*expected", r"opposite"),
        located=(r"gradient of a\b",),
        call=lambda apply, a, b: apply(shifted(a), b),
        options={"whole_numbers": False},
    ),
]
WRONG, RIGHT = wrong_and_right(OPERATIONS)
