"""Layers: sums and differences by weights near -1, 0 and 1."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right


def accumulated(x, w, m):
    return x @ (torch.tanh(w) * torch.sigmoid(m)).mT


class AccumulatedFunction(Function):
    @staticmethod
    def forward(ctx, x, w, m):
        t, s = torch.tanh(w), torch.sigmoid(m)
        ctx.save_for_backward(x, t, s)
        return x @ (t * s).mT

    @staticmethod
    def backward(ctx, g):
        x, t, s = ctx.saved_tensors
        to_weight = g.mT @ x
        return g @ (t * s), to_weight * s * (1 - t * t), to_weight * t * s * (1 - s)


class NeuralAccumulator(Function):
    """NAC: y = x W^T with W = tanh(W_hat) * sigmoid(M_hat)."""

    @staticmethod
    def forward(ctx, x, W_hat, M_hat):
        th = torch.tanh(W_hat)
        sg = torch.sigmoid(M_hat)
        W = th * sg
        ctx.save_for_backward(x, th, sg, W)
        return torch.matmul(x, W.t())

    @staticmethod
    def backward(ctx, grad_output):
        x, th, sg, W = ctx.saved_tensors
        grad_x = grad_W_hat = grad_M_hat = None
        if ctx.needs_input_grad[0]:
            grad_x = grad_output.matmul(W)
        if ctx.needs_input_grad[1]:
            grad_W = grad_output.t().matmul(x)
            grad_W_hat = grad_W * sg * (1 - th.pow(2))
            grad_M_hat = grad_W * th * sg * (1 - sg)
        return grad_x, grad_W_hat, grad_M_hat


OPERATIONS = [
    Operation(
        "weights near -1, 0 and 1, gate alone in training",
        AccumulatedFunction,
        NeuralAccumulator,
        accumulated,
        lambda: {"x": torch.randn(5, 4), "w": torch.randn(3, 4), "m": torch.randn(3, 4)},
        named="m gets no gradient where w is frozen: the condition asks for w alone, and computes both gradients",
        kinds=("depends on which inputs require a gradient", "none"),
        named_words=(r"requires? (a )?grad|needs_input_grad|frozen",),
        located=(r"gradient of m\b|needs_input_grad|M_hat",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
