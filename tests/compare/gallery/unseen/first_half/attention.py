"""Attention: several queries of one key, and additive attention."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right


class MultiQuery(Function):
    """Attention of queries (H, T, D) on keys and values (S, D) that the heads share."""

    @staticmethod
    def forward(ctx, q, k, v):
        p = (q @ k.t() * k.shape[1] ** -0.5).softmax(-1)
        ctx.save_for_backward(q, k, v, p)
        return p @ v

    @staticmethod
    def grads_per_head(ctx, g):
        q, k, v, p = ctx.saved_tensors
        grad_p = g @ v.t()
        grad_scores = p * (grad_p - (grad_p * p).sum(-1, keepdim=True)) * k.shape[1] ** -0.5
        return grad_scores @ k, grad_scores.transpose(1, 2) @ q, p.transpose(1, 2) @ g

    @staticmethod
    def backward(ctx, g):
        grad_q, grad_k, grad_v = MultiQuery.grads_per_head(ctx, g)
        return grad_q, grad_k.sum(0), grad_v.sum(0)


class MultiQueryWrong(MultiQuery):
    @staticmethod
    def backward(ctx, g):
        grad_q, grad_k, grad_v = MultiQuery.grads_per_head(ctx, g)
        return grad_q, grad_k.mean(0), grad_v.sum(0)


class Additive(Function):
    """scores[i, j] = sum over d of v[d] tanh(q[i, d] + k[j, d])."""

    @staticmethod
    def forward(ctx, q, k, v):
        before = q[:, None] + k[None]
        after = before.tanh()
        ctx.save_for_backward(before, after, v)
        return after @ v

    @staticmethod
    def backward(ctx, g):
        _, after, v = ctx.saved_tensors
        grad = g[:, :, None] * v * (1 - after * after)
        return grad.sum(1), grad.sum(0), torch.einsum("ij,ijd->d", g, after)


class AdditiveWrong(Additive):
    @staticmethod
    def backward(ctx, g):
        before, after, v = ctx.saved_tensors
        grad = g[:, :, None] * v * (1 - before * before)
        return grad.sum(1), grad.sum(0), torch.einsum("ij,ijd->d", g, after)


OPERATIONS = [
    Operation(
        "multi-query attention",
        MultiQuery,
        MultiQueryWrong,
        lambda q, k, v: (q @ k.t() * k.shape[1] ** -0.5).softmax(-1) @ v,
        lambda: {"q": torch.randn(3, 4, 5), "k": torch.randn(6, 5), "v": torch.randn(6, 5)},
        named="the gradient of k is the mean over the heads instead of the sum: 1/3 of it",
        kinds=("constant factor",),
        named_words=(r"1/3|0\.3333", r"mean.*(instead|in place|for|not).*sum", r"(third|divided by 3)"),
        located=(r"gradient of k\b",),
    ),
    Operation(
        "additive attention",
        Additive,
        AdditiveWrong,
        lambda q, k, v: (q[:, None] + k[None]).tanh() @ v,
        lambda: {"q": torch.randn(3, 5), "k": torch.randn(4, 5), "v": torch.randn(5)},
        named="the derivative of tanh is 1 - z² of the argument z = q + k instead of 1 - tanh(z)²",
        kinds=(),
        named_words=(
            r"derivative of (an|the) (inner|activation|function|nonlinearity|tanh)",
            r"before.*(instead|in place|for|not).*after",
            r"pre-?activation",
            r"(argument|input|saved).*(instead|in place|for|not).*(output|result|tanh)",
            r"(each|every) (coefficient|term|contribution).*(factor|wrong)",
            r"coefficients?.*(differ|wrong|depend)",
        ),
        located=(r"gradient of q\b|\bq and k\b", r"gradient of k\b|\bq and k\b"),
    ),
]
WRONG, RIGHT = wrong_and_right(OPERATIONS)
