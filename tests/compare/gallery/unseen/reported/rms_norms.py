"""Reported mistakes in RMSNorm."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

EPS = 1e-5


def rms_norm(x, weight):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS) * weight


class RMSNormFunction(Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return rms_norm(x, weight)

    @staticmethod
    def backward(ctx, g):
        x, weight = ctx.saved_tensors
        r = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS)
        normed = x * r
        scaled = g * weight
        return r * (scaled - normed * (scaled * normed).mean(-1, keepdim=True)), (g * normed).sum(0)


class BatchInvariantRMSNorm(Function):
    @staticmethod
    def forward(ctx, x, weight):
        rstd = (x.square().mean(dim=-1, keepdim=True) + EPS).rsqrt()
        ctx.save_for_backward(x, weight, rstd)
        return x * rstd * weight

    @staticmethod
    def backward(ctx, grad_y):
        x, weight, rstd = ctx.saved_tensors
        size = x.shape[-1]
        s = (grad_y * x * weight).sum(dim=-1, keepdim=True)
        grad_x = grad_y * weight * rstd - weight * rstd.pow(3) * x * s / size
        return grad_x, (grad_y * x * rstd).sum(dim=0)


class RMSNormWithoutWeight(Function):
    @staticmethod
    def forward(ctx, inp, weight):
        rstd = 1 / torch.sqrt((inp * inp).mean(-1) + EPS)
        ctx.save_for_backward(inp, weight, rstd)
        return inp * rstd[:, None] * weight

    @staticmethod
    def backward(ctx, dout):
        inp, weight, rstd = ctx.saved_tensors  # noqa: RUF059
        norm = inp * rstd[:, None]
        mean = (dout * norm).mean(-1)
        dinp = (dout - norm * mean[:, None]) * rstd[:, None]
        return dinp, (dout * norm).sum(0)


class FastRMSNorm(Function):
    @staticmethod
    def forward(ctx, X, W):
        r = torch.rsqrt((X * X).mean(1, keepdim=True) + EPS)
        ctx.save_for_backward(X, W, r)
        return X * r * W

    @staticmethod
    def backward(ctx, dY):
        X, W, r = ctx.saved_tensors
        normed = X * r
        dX = dY.mul_(W)
        row = (dX * normed).mean(1, keepdim=True)
        dW = (dY * normed).sum(0)
        return (dX - normed * row) * r, dW


def x_and_weight():
    return torch.randn(5, 4), torch.rand(4) + 0.5


OPERATIONS = [
    Operation(
        "RMSNorm, weight twice",
        RMSNormFunction,
        BatchInvariantRMSNorm,
        rms_norm,
        x_and_weight,
        named="the term of the root mean square is multiplied by the weight once more (NVIDIA/Megatron-LM #6859)",
        kinds=("another operand", "step left out", "factor by element", "change of the source"),
        named_words=(r"weight", r"should be `.*rstd\.pow\(3\) \* x \* s"),
        located=(r"gradient of x",),
        options={"whole_numbers": False},
    ),
    Operation(
        "RMSNorm, weight forgotten",
        RMSNormFunction,
        RMSNormWithoutWeight,
        rms_norm,
        x_and_weight,
        named="the incoming gradient is not multiplied by the weight (karpathy/llm.c #763)",
        kinds=("step left out",),
        named_words=(r"weight",),
        located=(r"gradient of x",),
        options={"whole_numbers": False},
    ),
    Operation(
        "RMSNorm, incoming gradient written over",
        RMSNormFunction,
        FastRMSNorm,
        rms_norm,
        x_and_weight,
        named="the incoming gradient is written over before the weight's is computed (unslothai/unsloth #4533)",
        kinds=("changes the incoming gradient",),
        named_words=(r"incoming gradient.*in place",),
        located=(r"incoming gradient",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
