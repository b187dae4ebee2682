"""Normalizations: steps on a sphere, norms of batch and image mixed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import WrongFunction

EPS = 1e-3


def step_on_sphere(h, target, alpha):
    return F.normalize(h + alpha * (target - h), dim=1, eps=0)


class NGPTResidual(Function):
    """h <- normalize(h + alpha * (h_block - h)), with a learned rate for each feature."""

    @staticmethod
    def forward(ctx, h, h_block, alpha):
        delta = h_block - h
        u = h + alpha * delta
        norm = u.norm(dim=1, keepdim=True)
        y = u / norm
        ctx.save_for_backward(y, norm, delta, alpha)
        return y

    @staticmethod
    def backward(ctx, grad):
        y, norm, delta, alpha = ctx.saved_tensors
        grad_alpha = (grad * delta / norm).sum(0)
        grad = (grad - y * (y * grad).sum(dim=1, keepdim=True)) / norm
        return grad * (1 - alpha), grad * alpha, grad_alpha


def batch_and_image(x, rho):
    share = rho.clamp(0, 1).view(-1, 1, 1)
    return share * F.batch_norm(x, None, None, training=True, eps=EPS) + (1 - share) * F.instance_norm(x, eps=EPS)


def standardize(x, dims):
    mean = x.mean(dims, keepdim=True)
    inv = (x.var(dims, unbiased=False, keepdim=True) + EPS).rsqrt()
    return (x - mean) * inv, inv


def standardize_backward(g, x_hat, inv, dims):
    return inv * (g - g.mean(dims, keepdim=True) - x_hat * (g * x_hat).mean(dims, keepdim=True))


class BatchInstanceNorm(Function):
    @staticmethod
    def forward(ctx, x, rho):
        dims = (0, 2, 3)
        r = rho.clamp(0, 1).view(1, -1, 1, 1)
        bn, bn_inv = standardize(x, dims)
        inn, in_inv = standardize(x, (2, 3))
        ctx.dims = dims
        ctx.save_for_backward(r, rho, bn, bn_inv, inn, in_inv)
        return r * bn + (1 - r) * inn

    @staticmethod
    def backward(ctx, g):
        r, rho, bn, bn_inv, inn, in_inv = ctx.saved_tensors
        gx = standardize_backward(g * r, bn, bn_inv, ctx.dims)
        gx = gx + standardize_backward(g * (1 - r), inn, in_inv, ctx.dims)
        inside = (rho >= 0) & (rho <= 1)
        grho = (g * (bn - inn)).sum(ctx.dims) * inside
        return gx, grho


WRONG = [
    WrongFunction(
        Case(
            "step on a sphere, rate before the projection",
            NGPTResidual.apply,
            step_on_sphere,
            lambda: {"h": torch.randn(4, 5), "target": torch.randn(4, 5), "alpha": torch.rand(5)},
            whole_numbers=False,
        ),
        named="alpha's gradient is taken from the incoming gradient before the length's part is subtracted",
        kinds=("missing term", "step left out", "wrong intermediate value", "another operand"),
        named_words=(r"missing", r"constant", r"norm\b|length"),
        located=(r"gradient of alpha\b",),
    ),
    WrongFunction(
        Case(
            "norms of batch and image mixed, dimensions of the batch",
            BatchInstanceNorm.apply,
            batch_and_image,
            lambda: {"x": torch.randn(3, 2, 2, 3), "rho": torch.tensor([0.3, 0.6])},
            whole_numbers=False,
        ),
        named="the backward of the image's norm takes its two means over the batch as well",
        kinds=("wrong sum", "another operand"),
        named_words=(r"mean|sum", r"dims", r"\(2, 3\)"),
        located=(r"gradient of x\b",),
    ),
]

RIGHT: list[Case] = []
