"""Attention: scaled dot products, rotary positions."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right


class Attention(Function):
    """softmax(q k^T / sqrt(D)) v for q (B, T, D), k (B, S, D) and v (B, S, E)."""

    @staticmethod
    def forward(ctx, q, k, v):
        p = (q @ k.transpose(1, 2) * q.shape[2] ** -0.5).softmax(2)
        ctx.save_for_backward(q, k, v, p)
        return p @ v

    @staticmethod
    def grads(ctx, g, scale_q, scale_k):
        q, k, v, p = ctx.saved_tensors
        grad_p = g @ v.transpose(1, 2)
        grad_scores = p * (grad_p - (grad_p * p).sum(2, keepdim=True))
        grad_k = grad_scores.transpose(1, 2) @ q * scale_k
        return grad_scores @ k * scale_q, grad_k, p.transpose(1, 2) @ g

    @staticmethod
    def backward(ctx, g):
        scale = ctx.saved_tensors[0].shape[2] ** -0.5
        return Attention.grads(ctx, g, scale, scale)


class AttentionWrong(Attention):
    @staticmethod
    def backward(ctx, g):
        return Attention.grads(ctx, g, 1, ctx.saved_tensors[0].shape[2] ** -0.5)


def rotate(x, direction):
    """Rotate the pairs (x[2 d], x[2 d + 1]) of each position t by an angle that grows with t."""
    position = torch.arange(x.shape[1], dtype=x.dtype)[:, None]
    angle = direction * position * 0.7 ** torch.arange(1, x.shape[2] // 2 + 1, dtype=x.dtype)
    first, second = x[..., ::2], x[..., 1::2]
    pairs = first * angle.cos() - second * angle.sin(), first * angle.sin() + second * angle.cos()
    return torch.stack(pairs, 3).flatten(2)


class Rotary(Function):
    """Rotary positions of x (B, T, D)."""

    @staticmethod
    def forward(ctx, x):
        return rotate(x, 1)

    @staticmethod
    def backward(ctx, g):
        return rotate(g, -1)


class RotaryWrong(Rotary):
    @staticmethod
    def backward(ctx, g):
        return rotate(g, 1)


OPERATIONS = [
    Operation(
        "attention",
        Attention,
        AttentionWrong,
        lambda q, k, v: (q @ k.transpose(1, 2) * q.shape[2] ** -0.5).softmax(2) @ v,
        lambda: {"q": torch.randn(2, 3, 5), "k": torch.randn(2, 4, 5), "v": torch.randn(2, 4, 6)},
        named="the gradient of q lacks the factor 1 / sqrt(D): sqrt(5) = 2.236 times the expected one",
        kinds=("constant factor",),
        named_words=(r"2\.236", r"sqrt ?\(?(5|d)", r"√ ?\(?(5|d)"),
        located=(r"gradient of q\b",),
    ),
    Operation(
        "rotary positions",
        Rotary,
        RotaryWrong,
        lambda x: rotate(x, 1),
        lambda: torch.randn(2, 4, 6),
        named="rotated by the same angle instead of back: forward in place of its transpose",
        kinds=("transposed",),
        named_words=(
            r"transpos",
            r"forward .*(again|applied|instead|in place|itself)",
            r"rotat|angle",
            r"inverse",
            r"sign .*(entries|coefficients|off|some|half)",
            r"(entries|coefficients|some|half).* sign",
        ),
        located=(r"gradient of (x|input 0)",),
    ),
]
WRONG, RIGHT = wrong_and_right(OPERATIONS)
