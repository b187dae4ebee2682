"""Matrices: a system of a diagonal plus rank one, sums of products as logarithms, the pseudo-inverse."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right


def solve_rank_one(diagonal, u, b):
    """Solve (diag(diagonal) + u uᵀ) x = b by the formula of Sherman and Morrison."""
    scaled = u / diagonal
    return b / diagonal - scaled * (scaled @ b) / (1 + scaled @ u)


class RankOneSolveFunction(Function):
    @staticmethod
    def forward(ctx, diagonal, u, b):
        ctx.save_for_backward(diagonal, u, b)
        return solve_rank_one(diagonal, u, b)

    @staticmethod
    def backward(ctx, g):
        diagonal, u, b = ctx.saved_tensors
        x = solve_rank_one(diagonal, u, b)
        adjoint = solve_rank_one(diagonal, u, g)
        return -adjoint * x, -(adjoint * (x @ u) + x * (adjoint @ u)), adjoint


class DiagonalPlusRankOne(Function):
    @staticmethod
    def forward(ctx, d, u, b):
        w = u / d
        x = b / d - w * (w @ b / (1 + w @ u))
        ctx.save_for_backward(d, u, w, x)
        return x

    @staticmethod
    def backward(ctx, grad_x):
        d, u, w, x = ctx.saved_tensors
        lam = grad_x / d - w * (w @ grad_x / (1 + w @ u))
        grad_d = -lam * x
        grad_u = -2 * lam * torch.dot(u, x)
        return grad_d, grad_u, lam


def log_matmul(a, b):
    return (a[:, :, None] + b[None]).logsumexp(1)


class LogMatmulFunction(Function):
    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return log_matmul(a, b)

    @staticmethod
    def backward(ctx, g):
        a, b = ctx.saved_tensors
        shares = (a[:, :, None] + b[None]).softmax(1) * g[:, None]
        return shares.sum(2), shares.sum(0)


def log_matmul_forward(a, b):
    peak_a = a.max(dim=1, keepdim=True).values
    peak_b = b.max(dim=0, keepdim=True).values
    return torch.log(torch.exp(a - peak_a) @ torch.exp(b - peak_b)) + peak_a + peak_b


class LogMM(Function):
    @staticmethod
    def forward(ctx, a, b):
        out = log_matmul_forward(a, b)
        ctx.save_for_backward(a, b)
        return out

    @staticmethod
    def backward(ctx, grad_out):
        a, b = ctx.saved_tensors
        pa = torch.softmax(a, dim=1)
        pb = torch.softmax(b, dim=0)
        total = pa @ pb
        grad_a = pa * (grad_out @ pb.t()) / total
        grad_b = pb * (pa.t() @ (grad_out / total))
        return grad_a, grad_b


def pseudo_inverse(a):
    return torch.linalg.solve(a.T @ a, a.T)


class PseudoInverseFunction(Function):
    @staticmethod
    def forward(ctx, a):
        inverse = pseudo_inverse(a)
        ctx.save_for_backward(a, inverse)
        return inverse

    @staticmethod
    def backward(ctx, g):
        a, inverse = ctx.saved_tensors
        outside = g - g @ a @ inverse
        gram_inverse = inverse @ inverse.T
        return -(inverse.T @ g @ inverse.T) + outside.T @ gram_inverse


class PInv(Function):
    @staticmethod
    def forward(ctx, a):
        a_plus = torch.linalg.solve(a.mT @ a, a.mT)
        ctx.save_for_backward(a_plus)
        return a_plus

    @staticmethod
    def backward(ctx, grad):
        (a_plus,) = ctx.saved_tensors
        return -a_plus.mT @ grad @ a_plus.mT


def third_order(a, b, c):
    return torch.einsum("ir,jr,kr->ijk", a, b, c)


def khatri_rao(left, right):
    return (left[:, None, :] * right[None, :, :]).reshape(-1, left.shape[1])


class CPTensor(Function):
    @staticmethod
    def forward(ctx, a, b, c):
        ctx.save_for_backward(a, b, c)
        return (a @ khatri_rao(b, c).T).reshape(len(a), len(b), len(c))

    @staticmethod
    def backward(ctx, grad):
        a, b, c = ctx.saved_tensors
        grad_a = grad.flatten(1) @ khatri_rao(b, c)
        grad_b = grad.transpose(0, 1).flatten(1) @ khatri_rao(c, a)
        grad_c = grad.permute(2, 0, 1).flatten(1) @ khatri_rao(a, b)
        return grad_a, grad_b, grad_c


OPERATIONS = [
    Operation(
        "diagonal plus rank one, as if both solutions were equal",
        RankOneSolveFunction,
        DiagonalPlusRankOne,
        solve_rank_one,
        lambda: {"diagonal": 1 + torch.rand(5), "u": torch.randn(5), "b": torch.randn(5)},
        named="u: twice one of its two terms, as if the solution were the incoming gradient's",
        kinds=("missing term", "factor of one term", "another operand", "not transposed"),
        named_words=(r"missing", r"\b2\b|twice|factor", r"not transposed", r"exchang|swap", r"\bb\b.*instead"),
        located=(r"gradient of u",),
        options={"whole_numbers": False},
    ),
    Operation(
        "products of exponentials, divisor of a's gradient",
        LogMatmulFunction,
        LogMM,
        log_matmul,
        lambda: {"a": torch.randn(3, 4), "b": torch.randn(4, 4)},
        named="a: the incoming gradient is divided after the product with b, by the divisors of other places",
        kinds=("wrong sum", "another operand", "factor by element", "step left out", "missing term"),
        named_words=(r"softmax|logsumexp", r"divi[ds]|\bdiv\b|normali[sz]"),
        located=(r"gradient of a",),
    ),
    Operation(
        "pseudo-inverse, as an inverse",
        PseudoInverseFunction,
        PInv,
        pseudo_inverse,
        lambda: (torch.randn(5, 3),),
        named="the derivative of the inverse of a square matrix: the term outside of the columns of a is missing",
        kinds=("missing term",),
        named_words=(r"missing", r"\binverse\b", r"constant", r"no effect"),
        located=(r"gradient of (a|input 0)",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "tensor of three factors, order of the pairs",
            CPTensor.apply,
            third_order,
            lambda: {"a": torch.randn(3, 2), "b": torch.randn(4, 2), "c": torch.randn(3, 2)},
        ),
        named="b: the pairs of the other factors are in the order (c, a), those of the gradient in the order (a, c)",
        kinds=("permuted", "transposed", "not transposed", "swapped", "another operand"),
        named_words=(r"\border\b|exchang|swap", r"transpos|permut"),
        located=(r"gradient of b",),
    ),
]
