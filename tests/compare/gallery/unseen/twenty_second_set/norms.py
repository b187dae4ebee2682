"""Normalizers: rows of a learned length, weights with mean 0 and variance 1, a bounded linear layer."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

EPS = 1e-5


def rows_of_length(x, length):
    return length * x / (x.square().sum(-1, keepdim=True) + EPS).sqrt()


class RowsOfLengthFunction(Function):
    @staticmethod
    def forward(ctx, x, length):
        norm = (x.square().sum(-1, keepdim=True) + EPS).sqrt()
        unit = x / norm
        ctx.save_for_backward(unit, norm, length)
        return length * unit

    @staticmethod
    def backward(ctx, g):
        unit, norm, length = ctx.saved_tensors
        along = (g * unit).sum(-1, keepdim=True)
        return length * (g - along * unit) / norm, along.sum()


class ScaleNorm(Function):
    """g * x / ||x||, from 'Transformers without Tears'."""

    @staticmethod
    def forward(ctx, x, g):
        norm = torch.sqrt(torch.sum(x * x, dim=-1, keepdim=True) + EPS)
        ctx.save_for_backward(x, g, norm)
        return g * x / norm

    @staticmethod
    def backward(ctx, dy):
        x, g, norm = ctx.saved_tensors
        # quotient rule: (x' * norm - x * norm') / norm^2
        dnorm = torch.sum(dy * x, dim=-1, keepdim=True)
        dx = g * (dy * norm - x * dnorm) / norm**2
        dg = torch.sum(dy * x / norm)
        return dx, dg


def standardized_conv(x, weight):
    centred = weight - weight.mean((1, 2), keepdim=True)
    unit = centred / (centred.square().mean((1, 2), keepdim=True) + EPS).sqrt()
    return torch.einsum("nclk,ock->nol", x.unfold(2, weight.size(2), 1), unit)


class StandardizedConvFunction(Function):
    @staticmethod
    def forward(ctx, x, weight):
        centred = weight - weight.mean((1, 2), keepdim=True)
        deviation = (centred.square().mean((1, 2), keepdim=True) + EPS).sqrt()
        unit = centred / deviation
        ctx.save_for_backward(x, unit, deviation)
        return torch.einsum("nclk,ock->nol", x.unfold(2, weight.size(2), 1), unit)

    @staticmethod
    def backward(ctx, g):
        x, unit, deviation = ctx.saved_tensors
        width = unit.size(2)
        to_x = torch.zeros_like(x)
        for k in range(width):
            to_x[:, :, k : k + g.size(2)] += torch.einsum("nol,oc->ncl", g, unit[:, :, k])
        to_unit = torch.einsum("nol,nclk->ock", g, x.unfold(2, width, 1))
        mean, along = to_unit.mean((1, 2), keepdim=True), (to_unit * unit).mean((1, 2), keepdim=True)
        return to_x, (to_unit - mean - along * unit) / deviation


class WSConv1d(Function):
    """Conv1d with weight standardization."""

    @staticmethod
    def forward(ctx, x, weight):
        k = weight.size(2)
        w = weight.reshape(weight.size(0), -1)
        mean = w.mean(dim=1, keepdim=True)
        std = torch.sqrt(((w - mean) ** 2).mean(dim=1, keepdim=True) + EPS)
        w_hat = (w - mean) / std
        cols = x.unfold(2, k, 1).permute(0, 2, 1, 3).flatten(2)  # N, L, C*k
        ctx.save_for_backward(cols, w_hat, std)
        ctx.x_shape, ctx.w_shape = x.shape, weight.shape
        return (cols @ w_hat.t()).transpose(1, 2)

    @staticmethod
    def backward(ctx, grad_output):
        cols, w_hat, std = ctx.saved_tensors
        _, in_channels, k = ctx.w_shape
        grad = grad_output.transpose(1, 2)  # N, L, O
        grad_cols = (grad @ w_hat).unflatten(2, (in_channels, k))
        grad_x = torch.zeros(ctx.x_shape, dtype=grad.dtype, device=grad.device)
        length = grad.size(1)
        for i in range(k):
            grad_x[:, :, i : i + length] += grad_cols[..., i].transpose(1, 2)
        grad_w_hat = torch.einsum("nlo,nlk->ok", grad, cols)
        grad_w = (grad_w_hat - grad_w_hat.mean(dim=1, keepdim=True)) / std
        return grad_x, grad_w.reshape(ctx.w_shape)


def spectral_linear(x, w, u, v):
    return x @ (w / (u @ w @ v)).mT


class SpectralLinearFunction(Function):
    @staticmethod
    def forward(ctx, x, w, u, v):
        sigma = u @ w @ v
        ctx.save_for_backward(x, w, u, v, sigma)
        return x @ w.mT / sigma

    @staticmethod
    def backward(ctx, g):
        x, w, u, v, sigma = ctx.saved_tensors
        to_scaled = g.mT @ x / sigma
        to_sigma = -(to_scaled * w).sum() / sigma
        to_w = to_scaled + to_sigma * torch.outer(u, v)
        return g @ w / sigma, to_w, to_sigma * (w @ v), to_sigma * (u @ w)


class SpectralNormLinear(Function):
    """x @ (W / sigma).T with sigma = u^T W v, one power iteration done outside."""

    @staticmethod
    def forward(ctx, x, W, u, v):
        sigma = torch.dot(u, torch.mv(W, v))
        W_bar = W / sigma
        ctx.save_for_backward(x, W, W_bar, u, v, sigma)
        return x @ W_bar.t()

    @staticmethod
    def backward(ctx, grad_out):
        x, W, W_bar, u, v, sigma = ctx.saved_tensors
        grad_x = grad_out @ W_bar
        grad_W_bar = grad_out.t() @ x
        grad_sigma = -(grad_W_bar * W_bar).sum() / sigma
        grad_W = grad_W_bar / sigma + grad_sigma * torch.outer(v, u)
        grad_u = grad_sigma * torch.mv(W, v)
        grad_v = grad_sigma * torch.mv(W.t(), u)
        return grad_x, grad_W, grad_u, grad_v


OPERATIONS = [
    Operation(
        "rows of a learned length, derivative of the length",
        RowsOfLengthFunction,
        ScaleNorm,
        rows_of_length,
        lambda: {"x": torch.randn(5, 4), "length": 0.5 + torch.rand(())},
        named="x: the derivative of the norm is x over the norm, and the division by the norm is missing",
        kinds=("factor of one term", "step left out", "missing term", "another operand"),
        named_words=(r"\bd?norm\b", r"divi"),
        located=(r"gradient of x\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "convolution with standardized weights, deviation as a constant",
        StandardizedConvFunction,
        WSConv1d,
        standardized_conv,
        lambda: {"x": torch.randn(3, 2, 7), "weight": torch.randn(4, 2, 3)},
        named="weight: the deviation depends on the weight too, and the part of the gradient through it is missing",
        kinds=("missing term",),
        named_words=(r"missing", r"deviation|\bstd\b|variance|sqrt"),
        located=(r"gradient of weight\b",),
    ),
    Operation(
        "linear layer over its largest singular value, outer product transposed",
        SpectralLinearFunction,
        SpectralNormLinear,
        spectral_linear,
        lambda: {
            "x": torch.randn(5, 4),
            "w": torch.randn(4, 4) / 4 + 2 * torch.eye(4),
            "u": 0.5 + torch.rand(4),
            "v": 0.5 + torch.rand(4),
        },
        named="w: the derivative of u W v is the outer product of u and v, and it is transposed",
        kinds=("another operand", "transposed", "factor of one term", "swapped", "step left out"),
        named_words=(r"transpos|\.t\(\)|\.mT|\.T\b", r"outer", r"\bu\b.*\bv\b|\bv\b.*\bu\b"),
        located=(r"gradient of (w|W)\b",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
