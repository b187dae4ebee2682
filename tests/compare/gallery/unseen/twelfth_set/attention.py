"""Attention: heads that are mixed, a difference of two, a gate beside the residual."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right


def softmax_backward(p, g):
    return p * (g - (p * g).sum(-1, keepdim=True))


def talking_heads(q, k, v, mix):
    scores = torch.einsum("hid,hjd->hij", q, k)
    return torch.einsum("gh,hij->gij", mix, scores).softmax(-1) @ v


class TalkingHeadsFunction(Function):
    @staticmethod
    def forward(ctx, q, k, v, mix):
        ctx.save_for_backward(q, k, v, mix)
        return talking_heads(q, k, v, mix)

    @staticmethod
    def backward(ctx, g):
        q, k, v, mix = ctx.saved_tensors
        scores = q @ k.transpose(1, 2)
        p = torch.einsum("gh,hij->gij", mix, scores).softmax(-1)
        grad_mixed = softmax_backward(p, g @ v.transpose(1, 2))
        grad_scores = torch.einsum("gh,gij->hij", mix, grad_mixed)
        grad_mix = torch.einsum("gij,hij->gh", grad_mixed, scores)
        return grad_scores @ k, grad_scores.transpose(1, 2) @ q, p.transpose(1, 2) @ g, grad_mix


class TalkingHeads(Function):
    @staticmethod
    def forward(ctx, q, k, v, w):
        s = torch.matmul(q, k.transpose(-1, -2))
        p = torch.softmax(torch.tensordot(w, s, dims=1), dim=-1)
        ctx.save_for_backward(q, k, v, w, s, p)
        return torch.matmul(p, v)

    @staticmethod
    def backward(ctx, do):
        q, k, v, w, s, p = ctx.saved_tensors
        dv = torch.matmul(p.transpose(-1, -2), do)
        dp = torch.matmul(do, v.transpose(-1, -2))
        dl = p * (dp - torch.sum(p * dp, dim=-1, keepdim=True))
        dw = dl.flatten(1) @ s.flatten(1).t()
        ds = torch.tensordot(w, dl, dims=1)
        return torch.matmul(ds, k), torch.matmul(ds.transpose(-1, -2), q), dv, dw


def differential_attention(queries, keys, v, strength):
    first, second = (queries @ keys.transpose(1, 2)).softmax(-1)
    return (first - strength * second) @ v


class DifferentialAttentionFunction(Function):
    @staticmethod
    def forward(ctx, queries, keys, v, strength):
        ctx.save_for_backward(queries, keys, v, strength)
        return differential_attention(queries, keys, v, strength)

    @staticmethod
    def backward(ctx, g):
        queries, keys, v, strength = ctx.saved_tensors
        p = (queries @ keys.transpose(1, 2)).softmax(-1)
        grad_weights = g @ v.T
        grad_scores = softmax_backward(p, torch.stack([grad_weights, -strength * grad_weights]))
        grad_v = (p[0] - strength * p[1]).T @ g
        grad_strength = -(grad_weights * p[1]).sum()
        return grad_scores @ keys, grad_scores.transpose(1, 2) @ queries, grad_v, grad_strength


class DiffAttention(Function):
    @staticmethod
    def forward(ctx, q, k, v, lam):
        a1 = torch.softmax(q[0] @ k[0].t(), dim=-1)
        a2 = torch.softmax(q[1] @ k[1].t(), dim=-1)
        attn = a1 - lam * a2
        ctx.save_for_backward(q, k, v, lam, a1, a2, attn)
        return attn @ v

    @staticmethod
    def backward(ctx, grad_out):
        q, k, v, lam, a1, a2, attn = ctx.saved_tensors
        grad_v = attn.t() @ grad_out
        grad_attn = grad_out @ v.t()
        grad_lam = -(grad_attn * a2).sum()
        dot = (grad_attn * attn).sum(dim=-1, keepdim=True)
        grad_s1 = a1 * (grad_attn - dot)
        grad_s2 = -lam * a2 * (grad_attn - dot)
        grad_q = torch.stack((grad_s1 @ k[0], grad_s2 @ k[1]))
        grad_k = torch.stack((grad_s1.t() @ q[0], grad_s2.t() @ q[1]))
        return grad_q, grad_k, grad_v, grad_lam


def gated_residual(x, memory, gate):
    return x + gate.tanh() * ((x @ memory.T).softmax(1) @ memory)


class MemoryRead(Function):
    @staticmethod
    def forward(ctx, x, memory, gate):
        attn = torch.softmax(x @ memory.t(), dim=1)
        read = attn @ memory
        t = torch.tanh(gate)
        ctx.save_for_backward(x, memory, t, attn, read)
        return x + t * read

    @staticmethod
    def backward(ctx, grad_y):
        x, memory, t, attn, read = ctx.saved_tensors
        grad_gate = (grad_y * read).sum(0) * (1 - t**2)
        grad_read = grad_y * t
        grad_attn = grad_read @ memory.t()
        grad_logits = attn * (grad_attn - (grad_read * read).sum(1, keepdim=True))
        grad_x = grad_logits @ memory
        grad_memory = attn.t() @ grad_read + grad_logits.t() @ x
        grad_x += grad_read
        return grad_x, grad_memory, grad_gate


OPERATIONS = [
    Operation(
        "attention of mixed heads, mixture not transposed",
        TalkingHeadsFunction,
        TalkingHeads,
        talking_heads,
        lambda: {
            "q": torch.randn(3, 4, 2),
            "k": torch.randn(3, 4, 2),
            "v": torch.randn(3, 4, 2),
            "mix": torch.randn(3, 3),
        },
        named="the gradient of the scores is multiplied by the mixture of heads where its transpose belongs",
        kinds=("not transposed", "transposed", "another operand"),
        named_words=(r"transpos",),
        located=(r"gradient of q", r"gradient of k"),
    ),
    Operation(
        "difference of two attentions, common mean",
        DifferentialAttentionFunction,
        DiffAttention,
        differential_attention,
        lambda: {
            "queries": torch.randn(2, 4, 3),
            "keys": torch.randn(2, 5, 3),
            "v": torch.randn(5, 3),
            "strength": torch.rand(()) / 2 + 0.3,
        },
        named="both softmaxes subtract the mean of the combined weights, where each has a mean of its own",
        kinds=("another operand", "step left out", "wrong sum", "missing term"),
        named_words=(r"softmax", r"\bsub\b|difference|combined", r"one too many|extra"),
        located=(r"gradient of (queries|q)", r"gradient of (keys|k)"),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "gated read of a memory, residual behind the gate",
            MemoryRead.apply,
            gated_residual,
            lambda: {"x": torch.randn(4, 3), "memory": torch.randn(5, 3), "gate": torch.randn(3)},
        ),
        named="x: the residual adds the gradient times the gate, where the whole incoming gradient belongs",
        kinds=("factor of one term", "missing term", "another operand", "factor by element", "step left out"),
        named_words=(r"\bgate\b|\btanh\b", r"one term|factor", r"residual|incoming gradient"),
        located=(r"gradient of x",),
    ),
]
