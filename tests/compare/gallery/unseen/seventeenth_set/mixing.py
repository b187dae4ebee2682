"""Mixing: attention without queries of keys, shares of each position, a branch that is dropped for some examples."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

KEPT = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0])
KEEP_RATE = 0.6


def position_mix(q, k, v, bias):
    weights = torch.softmax(bias[None, :, :, None] + k[:, None], 2)
    return torch.sigmoid(q) * (weights * v[:, None]).sum(2)


class PositionMixFunction(Function):
    @staticmethod
    def forward(ctx, q, k, v, bias):
        ctx.save_for_backward(q, k, v, bias)
        return position_mix(q, k, v, bias)

    @staticmethod
    def backward(ctx, g):
        q, k, v, bias = ctx.saved_tensors
        weights = torch.softmax(bias[None, :, :, None] + k[:, None], 2)
        mixed, gate = (weights * v[:, None]).sum(2), torch.sigmoid(q)
        to_mixed = (g * gate)[:, :, None]
        to_scores = weights * to_mixed * (v[:, None] - mixed[:, :, None])
        grad_q = g * mixed * gate * (1 - gate)
        return grad_q, to_scores.sum(1), (weights * to_mixed).sum(1), to_scores.sum((0, 3))


class AFTFull(Function):
    """Attention-free transformer (Zhai et al. 2021) with pairwise position biases."""

    @staticmethod
    def forward(ctx, q, k, v, w):
        ew, ek = w.exp(), k.exp()
        num = torch.einsum("ts,bsd->btd", ew, ek * v)
        den = torch.einsum("ts,bsd->btd", ew, ek)
        gate = torch.sigmoid(q)
        y = gate * (num / den)
        ctx.save_for_backward(v, ew, ek, den, gate, y)
        return y

    @staticmethod
    def backward(ctx, grad_y):
        v, ew, ek, den, gate, y = ctx.saved_tensors
        grad_q = grad_y * y * (1 - gate)
        grad_num = grad_y * gate / den
        grad_den = -grad_num * y
        grad_ekv = torch.einsum("ts,btd->bsd", ew, grad_num)
        grad_v = ek * grad_ekv
        grad_k = ek * (v * grad_ekv + torch.einsum("ts,btd->bsd", ew, grad_den))
        grad_ew = torch.einsum("btd,bsd->ts", grad_num, ek * v) + torch.einsum("btd,bsd->ts", grad_den, ek)
        return grad_q, grad_k, grad_v, ew * grad_ew


def shares(x):
    s = torch.nn.functional.softplus(x)
    return s / s.sum(-1, keepdim=True)


class SoftplusNorm(Function):
    """Positive scores that sum to 1 over the last dimension."""

    @staticmethod
    def forward(ctx, x):
        s = torch.log1p(torch.exp(-x.abs())) + x.clamp(min=0)
        total = s.sum(dim=-1, keepdim=True)
        y = s / total
        ctx.save_for_backward(x, y, total)
        return y

    @staticmethod
    def backward(ctx, grad_out):
        x, y, total = ctx.saved_tensors
        M = x.shape[0]
        g, p = grad_out.reshape(M, -1), y.reshape(M, -1)
        centered = g - (g * p).sum(dim=1, keepdim=True)
        return centered.view_as(x) / total * torch.sigmoid(x)


def dropped_branch(x, branch, gamma):
    return x + gamma * branch * (KEPT.to(x) / KEEP_RATE)[:, None]


class LayerScaleDropPath(Function):
    """Residual connection with LayerScale and stochastic depth."""

    @staticmethod
    def forward(ctx, x, f, gamma):
        keep = KEPT.to(f).unsqueeze(1) / KEEP_RATE
        ctx.save_for_backward(f, gamma, keep)
        return torch.addcmul(x, f * keep, gamma.expand_as(f))

    @staticmethod
    def backward(ctx, grad_y):
        if not ctx.needs_input_grad[0]:
            return None, None, None
        f, gamma, keep = ctx.saved_tensors
        scaled = grad_y * keep
        return grad_y, scaled * gamma, (scaled * f).sum(dim=0)


def queries_keys_values():
    q, k, v = torch.randn(3, 2, 4, 3).unbind(0)
    return {"q": q, "k": k, "v": v, "bias": torch.randn(4, 4)}


OPERATIONS = [
    Operation(
        "mix by positions, output for the mixed values",
        PositionMixFunction,
        AFTFull,
        position_mix,
        queries_keys_values,
        named="k, bias: the normalizer's derivative has the result after the gate, where that before it belongs",
        kinds=("another operand", "factor of one term", "step left out"),
        named_words=(r"\bgate\b|sigmoid", r"\bnum\b", r"\by\b"),
        located=(r"gradient of k\b", r"gradient of (bias|w)\b"),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "shares of each position, rows of examples",
            SoftplusNorm.apply,
            shares,
            lambda: {"x": torch.randn(2, 3, 4)},
        ),
        named="the sum of backward is over all but the first dimension, and that of forward over the last",
        kinds=("wrong sum", "another operand"),
        named_words=(r"\bsum", r"dimension", r"shape|reshape|\bM\b"),
        located=(r"gradient of x\b",),
    ),
    WrongFunction(
        Case(
            "branch dropped for some examples, input without gradient",
            LayerScaleDropPath.apply,
            dropped_branch,
            lambda: {"x": torch.randn(5, 3), "branch": torch.randn(5, 3), "gamma": torch.randn(3)},
        ),
        named="if x requires no gradient, branch and gamma get none either",
        kinds=("depends on which inputs require a gradient", "none", "zero"),
        named_words=(r"requires? a gradient|requires_grad|needs_input_grad|require gradients|frozen",),
        located=(r"branch|\bf\b", r"gamma"),
    ),
]
