"""Rows: some of which are replaced, messages from the parent in a tree."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

ROWS = torch.tensor([4, 1])
PARENTS = torch.tensor([-1, 0, 0, 2, 1, 2])


def with_rows(x, rows):
    return x.index_copy(0, ROWS, rows)


class WithRowsFunction(Function):
    @staticmethod
    def forward(ctx, x, rows):
        return with_rows(x, rows)

    @staticmethod
    def backward(ctx, g):
        return g.index_fill(0, ROWS, 0), g[ROWS]


class ReplaceRows(Function):
    @staticmethod
    def forward(ctx, x, rows):
        out = x.clone()
        out[ROWS] = rows
        return out

    @staticmethod
    def backward(ctx, grad):
        grad_x = grad.contiguous()
        grad_x[ROWS] = 0
        return grad_x, grad[ROWS]


def plus_parent(x, weight):
    has_parent = (PARENTS >= 0)[:, None]
    return x + weight * torch.where(has_parent, x[PARENTS.clamp(min=0)], torch.zeros_like(x))


class PlusParentFunction(Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return plus_parent(x, weight)

    @staticmethod
    def backward(ctx, g):
        x, weight = ctx.saved_tensors
        children = (PARENTS >= 0).nonzero()[:, 0]
        parents = PARENTS[children]
        return g.index_add(0, parents, weight * g[children]), (g[children] * x[parents]).sum(0)


class TreeMessage(Function):
    @staticmethod
    def forward(ctx, x, weight):
        gathered = torch.zeros_like(x)
        for node, parent in enumerate(PARENTS.tolist()):
            if parent >= 0:
                gathered[node] = x[parent]
        ctx.save_for_backward(gathered, weight)
        return x + weight * gathered

    @staticmethod
    def backward(ctx, grad_out):
        gathered, weight = ctx.saved_tensors
        grad_x = grad_out.clone()
        for node, parent in enumerate(PARENTS.tolist()):
            grad_x[parent] += weight * grad_out[node]
        return grad_x, (grad_out * gathered).sum(dim=0)


OPERATIONS = [
    Operation(
        "replaced rows, incoming gradient written over",
        WithRowsFunction,
        ReplaceRows,
        with_rows,
        lambda: {"x": torch.randn(6, 3), "rows": torch.randn(2, 3)},
        named="backward sets the replaced rows of the incoming gradient itself to 0, then reads them for rows",
        kinds=("zero", "changes the incoming gradient", "only in one layout"),
        named_words=(r"modif|in place|chang|overwrit", r"\bzeros?\b|\b0\b"),
        located=(r"gradient of rows|incoming gradient",),
    ),
    Operation(
        "messages of parents, root",
        PlusParentFunction,
        TreeMessage,
        plus_parent,
        lambda: {"x": torch.randn(6, 3), "weight": torch.randn(3)},
        named="the root's parent is -1: its gradient goes to the last row",
        kinds=("missing term", "only at some indices", "only at borders", "few elements", "step left out"),
        named_words=(r"\blast\b|row 5|\[5\b|index 5", r"mask|where|clamp", r"one too many|extra", r"-1\b"),
        located=(r"gradient of x",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
