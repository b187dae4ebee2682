"""Linear algebra: distances, determinant, Gram matrix."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right


class Distances(Function):
    """Euclidean distances of the rows of a (N, D) and b (M, D)."""

    @staticmethod
    def forward(ctx, a, b):
        difference = a[:, None] - b
        distance = difference.square().sum(2).sqrt()
        ctx.save_for_backward(difference, distance)
        return distance

    @staticmethod
    def backward(ctx, g):
        difference, distance = ctx.saved_tensors
        scale = torch.where(distance == 0, 0, g / distance.where(distance != 0, distance.new_ones(())))
        grad = scale[:, :, None] * difference
        return grad.sum(1), -grad.sum(0)


class DistancesWrong(Distances):
    @staticmethod
    def backward(ctx, g):
        difference, distance = ctx.saved_tensors
        grad = (g / distance)[:, :, None] * difference
        return grad.sum(1), -grad.sum(0)


def some_equal_rows():
    """Draw a and b; row 0 of b is row 2 of a."""
    a, b = torch.randn(5, 2), torch.randn(4, 2)
    return {"a": a, "b": torch.cat([a[2:3], b[1:]])}


class Determinant(Function):
    """Determinants of a batch of matrices (B, N, N)."""

    @staticmethod
    def forward(ctx, x):
        det = torch.linalg.det(x)
        ctx.save_for_backward(x, det)
        return det

    @staticmethod
    def backward(ctx, g):
        x, det = ctx.saved_tensors
        return (g * det)[:, None, None] * torch.linalg.inv(x).transpose(1, 2)


class DeterminantWrong(Determinant):
    @staticmethod
    def backward(ctx, g):
        x, det = ctx.saved_tensors
        return (g * det)[:, None, None] * torch.linalg.inv(x)


class Gram(Function):
    """x x^T for x (N, D)."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x @ x.t()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return (g + g.t()) @ x


class GramWrong(Gram):
    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 2 * (g @ x)


OPERATIONS = [
    Operation(
        "distances",
        Distances,
        DistancesWrong,
        lambda a, b: (a[:, None] - b).norm(dim=2),
        some_equal_rows,
        named="NaN where two rows are equal: 0/0 at distance 0",
        kinds=("not finite",),
        named_words=(r"nan", r"not finite", r"0 ?/ ?0"),
        located=(r"gradient of a|gradients of a", r"output .*0|zeros?\b|equal|distance|ties?\b|row"),
    ),
    Operation(
        "determinant",
        Determinant,
        DeterminantWrong,
        lambda x: torch.linalg.det(x + 2 * torch.eye(4, dtype=x.dtype)),
        lambda: torch.randn(3, 4, 4),
        named="the inverse instead of its transpose",
        kinds=("transposed",),
        named_words=(r"transpos", r"(dimensions|indices|axes|rows and columns) .*(exchanged|swapped)"),
        located=(r"gradient of (x|input 0)",),
        call=lambda apply, x: apply(x + 2 * torch.eye(4, dtype=x.dtype)),
    ),
    Operation(
        "Gram matrix",
        Gram,
        GramWrong,
        lambda x: x @ x.t(),
        lambda: torch.randn(5, 3),
        named="2 g x instead of (g + g^T) x: right only for symmetric g",
        kinds=("transposed", "missing term"),
        named_words=(
            r"symmetric",
            r"g ?(\+|and) ?(g(\^T|\.t\(\)|ᵀ)|its transpose)",
            r"transpos",
            r"(second|one|other|another|first) use",
            r"use[sd]? .*(twice|more than once)",
            r"weights? 2 and 0",
        ),
        located=(r"gradient of (x|input 0)",),
    ),
]
WRONG, RIGHT = wrong_and_right(OPERATIONS)
