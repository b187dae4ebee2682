"""Matrices and complex numbers: logarithm of a covariance, nuclear norm, cardioid."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

RIDGE = 0.5


def log_covariance(x):
    values, vectors = torch.linalg.eigh(x @ x.mT + RIDGE * torch.eye(x.shape[0]).to(x))
    return (vectors * values.log()) @ vectors.mT


class LogCovarianceFunction(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return log_covariance(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        values, vectors = torch.linalg.eigh(x @ x.mT + RIDGE * torch.eye(x.shape[0]).to(x))
        quotients = torch.empty_like(x @ x.mT)
        for i, a in enumerate(values):
            for j, b in enumerate(values):
                quotients[i, j] = 1 / a if i == j else (a.log() - b.log()) / (a - b)
        to_covariance = vectors @ (quotients * (vectors.mT @ g @ vectors)) @ vectors.mT
        return (to_covariance + to_covariance.mT) @ x


class LogEuclidean(Function):
    """Log map of the regularized covariance of x, samples in columns; backward by Daleckii and Krein."""

    @staticmethod
    def forward(ctx, x):
        cov = x.mm(x.t())
        cov.diagonal().add_(RIDGE)
        s, U = torch.linalg.eigh(cov)
        ctx.save_for_backward(x, s, U)
        return U.mm(torch.diag(torch.log(s))).mm(U.t())

    @staticmethod
    def backward(ctx, grad_log):
        x, s, U = ctx.saved_tensors
        log_s = torch.log(s)
        num = log_s.unsqueeze(1) - log_s.unsqueeze(0)
        den = s.unsqueeze(1) - s.unsqueeze(0)
        K = torch.nan_to_num(num / den, nan=1.0)
        G = 0.5 * (grad_log + grad_log.t())
        grad_cov = U.mm(K * U.t().mm(G).mm(U)).mm(U.t())
        return 2 * grad_cov.mm(x)


def nuclear_norm(x):
    return torch.linalg.svdvals(x).sum(-1)


class NuclearNorm(Function):
    """Sum of the singular values of each square matrix of a batch."""

    @staticmethod
    def forward(ctx, mats):
        U, S, V = torch.linalg.svd(mats, full_matrices=False)
        ctx.save_for_backward(U, V)
        return S.sum(dim=-1)

    @staticmethod
    def backward(ctx, grad_norm):
        U, V = ctx.saved_tensors
        return grad_norm[:, None, None] * torch.matmul(U, V.transpose(-2, -1))


def cardioid(z):
    return 0.5 * (1 + torch.cos(torch.angle(z))) * z


class CardioidFunction(Function):
    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return cardioid(z)

    @staticmethod
    def backward(ctx, g):
        (z,) = ctx.saved_tensors
        unit = z / z.abs()
        along = (g * unit.conj()).real
        return 0.5 * (1 + unit.real) * g - 0.5j * unit.imag * along * unit


class ComplexCardioid(Function):
    """Cardioid of Virtue et al. 2017: scales z by 0.5 (1 + cos(phase))."""

    @staticmethod
    def forward(ctx, z):
        phase = z.angle()
        scale = 0.5 * (1 + phase.cos())
        ctx.save_for_backward(z, phase, scale)
        return scale * z

    @staticmethod
    def backward(ctx, grad_out):
        z, phase, scale = ctx.saved_tensors
        grad_scale = grad_out.real * z.real - grad_out.imag * z.imag
        grad_phase = -0.5 * grad_scale * phase.sin()
        inv_sq = grad_phase / (z.real**2 + z.imag**2)
        return scale * grad_out + torch.complex(-z.imag * inv_sq, z.real * inv_sq)


OPERATIONS = [
    Operation(
        "logarithm of a covariance, diagonal of the quotients",
        LogCovarianceFunction,
        LogEuclidean,
        log_covariance,
        lambda: {"x": torch.randn(3, 5)},
        named="the divided differences are 1 on the diagonal, where they are the derivative 1 / s of the logarithm",
        kinds=("another operand", "step left out", "factor by element", "missing term"),
        named_words=(r"diagonal", r"nan_to_num|nan=|NaN", r"1 / (s|values)|reciprocal"),
        located=(r"gradient of x\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "cardioid of complex numbers, incoming gradient not conjugated",
        CardioidFunction,
        ComplexCardioid,
        cardioid,
        lambda: {"z": torch.randn(4, 3, dtype=torch.complex64)},
        named="the gradient of the scale is the real part of g times z, where g is to be conjugated",
        kinds=("conjugated", "another operand", "step left out", "missing term"),
        named_words=(r"conj", r"sign.*imag|\+ grad_out\.imag"),
        located=(r"gradient of z\b",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "nuclear norm, vectors transposed twice",
            NuclearNorm.apply,
            nuclear_norm,
            lambda: {"x": torch.randn(2, 3, 3)},
            whole_numbers=False,
        ),
        named="torch.linalg.svd returns the right vectors transposed already, and backward transposes them again",
        kinds=("transposed", "not transposed", "another operand"),
        named_words=(r"transpos", r"\.mT|\.mH"),
        located=(r"gradient of (mats|x)\b",),
    ),
]
