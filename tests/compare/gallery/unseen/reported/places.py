"""Reported mistakes in indexing."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

COLUMNS = torch.tensor([[0, 0, 2], [1, 3, 1], [2, 2, 2], [3, 0, 0], [1, 2, 3]])
ROWS = torch.tensor([2, 0, 2, 1, 3, 2])


def gathered(x):
    return x.gather(1, COLUMNS)


class GatheredFunction(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.shape = x.shape
        return gathered(x)

    @staticmethod
    def backward(ctx, g):
        return torch.zeros(ctx.shape, dtype=g.dtype).scatter_add(1, COLUMNS, g)


class Gather(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.size = x.size()
        return x.gather(1, COLUMNS)

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output.new_zeros(ctx.size).scatter_(1, COLUMNS, grad_output)


def picked_rows(x):
    return x[ROWS]


class PickedRowsFunction(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.rows = len(x)
        return picked_rows(x)

    @staticmethod
    def backward(ctx, g):
        return torch.zeros(ctx.rows, g.shape[1], dtype=g.dtype).index_add(0, ROWS, g)


class GatherBackward(Function):
    @staticmethod
    def forward(ctx, source):
        ctx.extent = source.shape[0]
        return source.index_select(0, ROWS)

    @staticmethod
    def backward(ctx, grad_output):
        positions = torch.arange(ctx.extent) % len(ROWS)
        return grad_output[ROWS[positions]]


def picked_places(x):
    return x[ROWS, ROWS.flip(0)]


class PickedPlacesFunction(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.shape = x.shape
        return picked_places(x)

    @staticmethod
    def backward(ctx, g):
        return torch.zeros(ctx.shape, dtype=g.dtype).index_put((ROWS, ROWS.flip(0)), g, accumulate=True)


class GatherNd(Function):
    @staticmethod
    def forward(ctx, data):
        ctx.save_for_backward(data)
        return data[ROWS, ROWS.flip(0)]

    @staticmethod
    def backward(ctx, g):
        (data,) = ctx.saved_tensors
        grad = torch.zeros_like(data)
        grad[ROWS, ROWS.flip(0)] = g
        return grad


def scaled_product(a, b, scale):
    return torch.sigmoid(a) * b * scale[:, None]


class ScaledProductFunction(Function):
    @staticmethod
    def forward(ctx, a, b, scale):
        ctx.save_for_backward(a, b, scale)
        return scaled_product(a, b, scale)

    @staticmethod
    def backward(ctx, g):
        a, b, scale = ctx.saved_tensors
        s = torch.sigmoid(a)
        inner = g * scale[:, None]
        return inner * b * s * (1 - s), inner * s, (g * s * b).sum(1)


class RowKernels(Function):
    @staticmethod
    def forward(ctx, a, b, scale):
        ctx.save_for_backward(a, b, scale)
        return torch.stack([torch.sigmoid(a[n]) * b[n] * scale[n] for n in range(len(a))])

    @staticmethod
    def backward(ctx, dc):
        a, b, scale = ctx.saved_tensors
        da, db, dscale = torch.zeros_like(a), torch.zeros_like(b), torch.zeros_like(scale)
        for row in range(len(a)):
            s = torch.sigmoid(a[row])
            gate = dc[row] * scale[row]
            da[0] = gate * b[row] * s * (1 - s)
            db[0] = gate * s
            dscale[row] = (dc[row] * s * b[row]).sum()
        return da, db, dscale


OPERATIONS = [
    Operation(
        "gather, repeated indices",
        GatheredFunction,
        Gather,
        gathered,
        lambda: (torch.randn(5, 4),),
        named="gradients of repeated indices are written over one another, not added (pytorch/pytorch #1631)",
        kinds=("missing term", "only at some indices", "another operand", "step left out"),
        named_words=(r"scatter_add", r"repeat|accumulat|once|added"),
        located=(r"gradient of x",),
    ),
    Operation(
        "rows by indices, taken in place of added",
        PickedRowsFunction,
        GatherBackward,
        picked_rows,
        lambda: (torch.randn(4, 3),),
        named="backward takes rows by the indices in place of adding to them (ooples/AiDotNet.Tensors #894)",
        kinds=("not transposed", "permuted", "missing term", "another operand", "step left out"),
        named_words=(r"not transposed|transpose", r"index_add|index_put", r"rows?"),
        located=(r"gradient of x",),
    ),
    Operation(
        "elements by indices, repeated ones",
        PickedPlacesFunction,
        GatherNd,
        picked_places,
        lambda: (torch.randn(4, 4),),
        named="an element that is picked twice gets one of its two gradients (apache/mxnet #9172)",
        kinds=("missing term", "only at some indices", "another operand", "step left out", "few elements"),
        named_words=(r"accumulate|index_put|\+=|added", r"\[2, 2\]|row 2|column 2"),
        located=(r"gradient of x",),
    ),
    Operation(
        "rows of a kernel, all into the first",
        ScaledProductFunction,
        RowKernels,
        scaled_product,
        lambda: (torch.randn(5, 4), torch.randn(5, 4), torch.randn(5)),
        named="every row's gradient is stored in the first row (ByteDance-Seed/Triton-distributed #180)",
        kinds=("zero", "only at some indices", "change of the source"),
        named_words=(r"row", r"da\[row\]"),
        located=(r"gradient of a", r"gradient of b"),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
