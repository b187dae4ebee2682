"""Columns of a matrix: powers times a vector, sums with signs."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right


def powers(matrix, vector):
    columns = [vector]
    for _ in range(3):
        columns.append(matrix @ columns[-1])
    return torch.stack(columns, 1)


class PowersFunction(Function):
    @staticmethod
    def forward(ctx, matrix, vector):
        columns = powers(matrix, vector)
        ctx.save_for_backward(matrix, columns)
        return columns

    @staticmethod
    def backward(ctx, g):
        matrix, columns = ctx.saved_tensors
        grad_matrix, carried = torch.zeros_like(matrix), torch.zeros_like(g[:, 0])
        for k in (3, 2, 1):
            carried = carried + g[:, k]
            grad_matrix = grad_matrix + torch.outer(carried, columns[:, k - 1])
            carried = matrix.T @ carried
        return grad_matrix, carried + g[:, 0]


class KrylovColumns(Function):
    @staticmethod
    def forward(ctx, A, b):
        K = b.new_empty(b.numel(), 4)
        K[:, 0] = b
        for j in range(1, 4):
            K[:, j] = A @ K[:, j - 1]
        ctx.save_for_backward(A, K)
        return K

    @staticmethod
    def backward(ctx, gK):
        A, K = ctx.saved_tensors
        gA = torch.zeros_like(A)
        state = gK[:, 3].clone()
        for j in range(3, 0, -1):
            gA += torch.outer(state, K[:, j - 1])
            state = A.t() @ state
            if j > 1:
                state += gK[:, j]
        return gA, state + gK[:, 0]


def signed_sums(x):
    matrix = torch.ones(1, 1, dtype=x.dtype)
    while len(matrix) < x.shape[1]:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return x @ matrix


def fwht(x):
    n = x.shape[-1]
    x = x.clone()
    h = 1
    while h < n:
        for start in range(0, n, 2 * h):
            a = x[..., start : start + h].clone()
            b = x[..., start + h : start + 2 * h].clone()
            x[..., start : start + h] = a + b
            x[..., start + h : start + 2 * h] = a - b
        h *= 2
    return x


class WalshHadamard(Function):
    @staticmethod
    def forward(ctx, x):
        return fwht(x)

    @staticmethod
    def backward(ctx, grad_output):
        return fwht(grad_output) / grad_output.shape[-1]


OPERATIONS = [
    Operation(
        "powers times a vector, gradients of the columns",
        PowersFunction,
        KrylovColumns,
        powers,
        lambda: {"matrix": torch.randn(3, 3), "vector": torch.randn(3)},
        named="after the step from column j the gradient of column j is added instead of that of column j - 1",
        kinds=("shifted", "permuted", "another operand", "missing term"),
        named_words=(r"shift|column|place", r"missing|one too many"),
        located=(r"gradient of matrix", r"gradient of vector"),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "sums with signs, inverse for the transpose",
            WalshHadamard.apply,
            signed_sums,
            lambda: (torch.randn(3, 8),),
        ),
        named="backward is the inverse transform, 1/8 of the transposed one",
        kinds=("constant factor",),
        named_words=(r"0\.125|1/8|\b8\b",),
        located=(r"gradient of (x|input 0)",),
    ),
]
