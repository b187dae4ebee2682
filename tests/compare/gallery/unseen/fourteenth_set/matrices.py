"""Matrices: whitening, a square root, the likelihood of a Gaussian process, alignment of two representations."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

EPS = 0.1
POINTS = torch.tensor([0.0, 0.4, 1.1, 1.5, 2.3])


def whitened(x):
    centred = x - x.mean(0)
    covariance = centred.T @ centred / (len(x) - 1) + EPS * torch.eye(x.shape[1], dtype=x.dtype)
    return torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), centred.T, upper=False).T


class WhitenedFunction(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return whitened(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        centred = x - x.mean(0)
        covariance = centred.T @ centred / (len(x) - 1) + EPS * torch.eye(x.shape[1], dtype=x.dtype)
        inverse = torch.linalg.inv(torch.linalg.cholesky(covariance))
        inner = -(g.T @ centred @ inverse.T)
        inner = inner.tril() - inner.diagonal().diag() / 2
        to_covariance = inverse.T @ inner @ inverse
        grad = g @ inverse + centred @ (to_covariance + to_covariance.T) / (len(x) - 1)
        return grad - grad.mean(0)


def cholesky_vjp(L, grad_L):
    phi = (L.mT @ grad_L).tril()
    phi.diagonal().mul_(0.5)
    S = torch.linalg.solve_triangular(L.mT, phi, upper=True)
    S = torch.linalg.solve_triangular(L, S, upper=False, left=False)
    return (S + S.mT) / 2


class CholeskyWhitening(Function):
    @staticmethod
    def forward(ctx, x):
        n, d = x.shape
        xc = x - x.mean(dim=0, keepdim=True)
        cov = xc.t() @ xc / (n - 1) + EPS * torch.eye(d, dtype=x.dtype)
        L = torch.linalg.cholesky(cov)
        y = torch.linalg.solve_triangular(L, xc.t(), upper=False).t()
        ctx.save_for_backward(xc, L, y)
        return y

    @staticmethod
    def backward(ctx, grad_y):
        xc, L, y = ctx.saved_tensors
        n = xc.size(0)
        grad_xt = torch.linalg.solve_triangular(L, grad_y.t(), upper=False)
        grad_L = -(grad_xt @ y).tril()
        grad_cov = cholesky_vjp(L, grad_L)
        grad_xc = grad_xt.t() + 2 / (n - 1) * xc @ grad_cov
        return grad_xc - grad_xc.mean(dim=0, keepdim=True)


def root_of_second_moment(x):
    matrix = x.T @ x / len(x) + EPS * torch.eye(x.shape[1], dtype=x.dtype)
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.sqrt() @ vectors.T


class RootFunction(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return root_of_second_moment(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        values, vectors = torch.linalg.eigh(x.T @ x / len(x) + EPS * torch.eye(x.shape[1], dtype=x.dtype))
        roots = values.sqrt()
        inner = vectors.T @ g @ vectors / (roots[:, None] + roots)
        to_matrix = vectors @ inner @ vectors.T
        return x @ (to_matrix + to_matrix.T) / len(x)


class MatrixSquareRoot(Function):
    @staticmethod
    def forward(ctx, x):
        A = x.t() @ x / x.size(0) + EPS * torch.eye(x.size(1), dtype=x.dtype)
        w, V = torch.linalg.eigh(A)
        root = V @ torch.diag(w.sqrt()) @ V.t()
        ctx.save_for_backward(x, root)
        return root

    @staticmethod
    def backward(ctx, grad_root):
        x, root = ctx.saved_tensors
        grad_A = 0.5 * torch.linalg.inv(root) @ grad_root
        return x @ (grad_A + grad_A.t()) / x.size(0)


def process_likelihood(values, log_length, log_noise):
    squares = (POINTS[:, None] - POINTS).to(values) ** 2
    one = torch.eye(len(POINTS), dtype=values.dtype)
    covariance = torch.exp(-squares / (2 * torch.exp(2 * log_length))) + torch.exp(log_noise) * one
    return (values @ torch.linalg.solve(covariance, values) + torch.logdet(covariance)) / 2


class GPMarginalLikelihood(Function):
    @staticmethod
    def forward(ctx, y, log_length, log_noise):
        d2 = (POINTS.unsqueeze(0) - POINTS.unsqueeze(1)).to(y).square()
        kernel = torch.exp(-0.5 * d2 * torch.exp(-2 * log_length))
        K = kernel + log_noise.exp() * torch.eye(y.numel(), dtype=y.dtype)
        K_inv = torch.linalg.inv(K)
        alpha = K_inv @ y
        ctx.save_for_backward(d2, kernel, K_inv, alpha, log_length, log_noise)
        return 0.5 * (y.dot(alpha) + torch.linalg.slogdet(K).logabsdet)

    @staticmethod
    def backward(ctx, grad):
        d2, kernel, K_inv, alpha, log_length, log_noise = ctx.saved_tensors
        grad_K = 0.5 * grad * (K_inv - torch.outer(alpha, alpha))
        grad_length = (grad_K * kernel * d2).sum() * torch.exp(-2 * log_length)
        grad_noise = grad_K.sum() * log_noise.exp()
        return grad * alpha, grad_length, grad_noise


def alignment(x, y):
    x, y = x - x.mean(0), y - y.mean(0)
    common = ((y.T @ x) ** 2).sum()
    return common / torch.sqrt(((x.T @ x) ** 2).sum() * ((y.T @ y) ** 2).sum())


class AlignmentFunction(Function):
    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return alignment(x, y)

    @staticmethod
    def backward(ctx, g):
        x, y = ctx.saved_tensors
        x, y = x - x.mean(0), y - y.mean(0)
        of_x, of_y = x @ x.T, y @ y.T
        common, in_x, in_y = (of_x * of_y).sum(), (of_x**2).sum(), (of_y**2).sum()
        factor = 2 * g / torch.sqrt(in_x * in_y)
        return factor * (of_y - common / in_x * of_x) @ x, factor * (of_x - common / in_y * of_y) @ y


class LinearCKA(Function):
    @staticmethod
    def forward(ctx, X, Y):
        Xc = X - X.mean(dim=0)
        Yc = Y - Y.mean(dim=0)
        hsic = (Yc.t() @ Xc).square().sum()
        norm_x = (Xc.t() @ Xc).norm()
        norm_y = (Yc.t() @ Yc).norm()
        ctx.save_for_backward(Xc, Yc, hsic, norm_x, norm_y)
        return hsic / (norm_x * norm_y)

    @staticmethod
    def backward(ctx, grad):
        Xc, Yc, hsic, norm_x, norm_y = ctx.saved_tensors
        scale = 2 * grad / (norm_x * norm_y)
        grad_X = scale * (Yc @ (Yc.t() @ Xc) - hsic / norm_x * Xc @ (Xc.t() @ Xc))
        grad_Y = scale * (Xc @ (Xc.t() @ Yc) - hsic / norm_y * Yc @ (Yc.t() @ Yc))
        return grad_X, grad_Y


OPERATIONS = [
    Operation(
        "whitening, factor not transposed",
        WhitenedFunction,
        CholeskyWhitening,
        whitened,
        lambda: (torch.randn(7, 3),),
        named="the incoming gradient is solved with the Cholesky factor, where its transpose belongs",
        kinds=("not transposed", "transposed", "another operand"),
        named_words=(r"transpos", r"triangular"),
        located=(r"gradient of (x|input 0)",),
    ),
    Operation(
        "square root of a matrix, as if of numbers",
        RootFunction,
        MatrixSquareRoot,
        root_of_second_moment,
        lambda: (torch.randn(5, 3),),
        named="half of the root's inverse times the gradient, as for numbers; S X + X S = G has another solution",
        kinds=("another operand", "step left out"),
        named_words=(r"commut", r"Sylvester", r"as (for|of|if) (numbers|scalars)"),
        located=(r"gradient of (x|input 0)",),
        options={"whole_numbers": False},
    ),
    Operation(
        "alignment of representations, power of the divisor",
        AlignmentFunction,
        LinearCKA,
        alignment,
        lambda: {"x": torch.randn(6, 3), "y": torch.randn(6, 4)},
        named="the norm's part is divided by the norm, where its square belongs: a factor 1 / norm is left out",
        kinds=("step left out", "factor of one term", "another operand"),
        named_words=(r"\bnorm\b|norm_[xy]", r"divi(ded|sion)", r"\bpower\b"),
        located=(r"gradient of x", r"gradient of y"),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "likelihood of a process, trace",
            GPMarginalLikelihood.apply,
            process_likelihood,
            lambda: {
                "values": torch.randn(5),
                "log_length": torch.randn(()) / 3,
                "log_noise": torch.randn(()) / 3 - 1,
            },
        ),
        named="log_noise: the sum of all elements is taken, where the trace belongs",
        kinds=("wrong sum", "another operand", "step left out"),
        named_words=(r"trace|diagonal", r"\bsum\b"),
        located=(r"gradient of log_noise",),
    ),
]
