"""Matrices in parts: a complement, powers times a vector, sums with signs, products of columns."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right


def complement(a, b, c, d):
    return d - c @ torch.linalg.solve(a, b)


class Complement(Function):
    @staticmethod
    def forward(ctx, a, b, c, d):
        x = torch.linalg.solve(a, b)
        ctx.save_for_backward(a, c, x)
        return d - c @ x

    @staticmethod
    def backward(ctx, g):
        a, c, x = ctx.saved_tensors
        grad_b = -torch.linalg.solve(a.mT, c.mT @ g)
        return -grad_b @ x.mT, grad_b, -g @ x.mT, g


class SchurComplement(Function):
    @staticmethod
    def forward(ctx, a, b, c, d):
        a_inv = torch.linalg.inv(a)
        ctx.save_for_backward(a_inv, b, c)
        return d - c @ a_inv @ b

    @staticmethod
    def backward(ctx, grad_s):
        a_inv, b, c = ctx.saved_tensors
        left = a_inv.t() @ c.t()
        grad_a = left @ grad_s @ (b.t() @ a_inv)
        grad_c = -grad_s @ (a_inv @ b).t()
        return grad_a, -left @ grad_s, grad_c, grad_s


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


class SignedSumsFunction(Function):
    @staticmethod
    def forward(ctx, x):
        return signed_sums(x)

    @staticmethod
    def backward(ctx, g):
        return signed_sums(g)


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


def column_products(a, b):
    return (a[:, None] * b[None]).flatten(0, 1)


class ColumnProductsFunction(Function):
    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return column_products(a, b)

    @staticmethod
    def backward(ctx, g):
        a, b = ctx.saved_tensors
        g = g.reshape(len(a), len(b), -1)
        return (g * b).sum(1), (g * a[:, None]).sum(0)


class KhatriRao(Function):
    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return torch.einsum("ir,jr->ijr", a, b).reshape(-1, a.shape[1])

    @staticmethod
    def backward(ctx, grad):
        a, b = ctx.saved_tensors
        grad = grad.reshape(b.shape[0], a.shape[0], -1)
        grad_a = torch.einsum("jir,jr->ir", grad, b)
        grad_b = torch.einsum("jir,ir->jr", grad, a)
        return grad_a, grad_b


def blocks():
    return {
        "a": torch.randn(3, 3) + 4 * torch.eye(3),
        "b": torch.randn(3, 2),
        "c": torch.randn(2, 3),
        "d": torch.randn(2, 2),
    }


OPERATIONS = [
    Operation(
        "powers times a vector, gradients of the columns",
        PowersFunction,
        KrylovColumns,
        powers,
        lambda: {"matrix": torch.randn(3, 3), "vector": torch.randn(3)},
        named="after the step from column j the gradient of column j is added instead of that of column j - 1",
        kinds=("shifted", "permuted", "another operand", "missing term"),
        named_words=(r"shift|column|place", r"instead of", r"missing|one too many"),
        located=(r"gradient of matrix", r"gradient of vector"),
    ),
    Operation(
        "sums with signs, inverse for the transpose",
        SignedSumsFunction,
        WalshHadamard,
        signed_sums,
        lambda: (torch.randn(3, 8),),
        named="backward is the inverse transform, 1/8 of the transposed one",
        kinds=("constant factor",),
        named_words=(r"0\.125|1/8|\b8\b",),
        located=(r"gradient of (x|input 0)",),
    ),
    Operation(
        "products of columns, order of the rows",
        ColumnProductsFunction,
        KhatriRao,
        column_products,
        lambda: {"a": torch.randn(3, 2), "b": torch.randn(4, 2)},
        named="the rows of the gradient are split with b's index first, where forward has a's first",
        kinds=("permuted", "another operand", "step left out"),
        named_words=(r"permut|place|order", r"view|reshape|flatten", r"exchang|transpos|instead of"),
        located=(r"gradient of a", r"gradient of b"),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
RIGHT += [Case("complement of a block", Complement.apply, complement, blocks, whole_numbers=False)]
WRONG += [
    WrongFunction(
        Case(
            "complement of a block, inverse not transposed",
            SchurComplement.apply,
            complement,
            blocks,
            whole_numbers=False,
        ),
        named="a: the inverse on the right is not transposed",
        kinds=("not transposed", "transposed", "another operand"),
        named_words=(r"transpos|\bt\b|adjoint",),
        located=(r"gradient of a",),
    ),
]
