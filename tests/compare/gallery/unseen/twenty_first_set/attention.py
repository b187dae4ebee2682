"""Attention: similarity of directions, capped scores, a sink that takes a share, a memory written by errors."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

CAP = 2.0


def directions_attend(q, k, v, tau):
    q, k = q / q.norm(dim=-1, keepdim=True), k / k.norm(dim=-1, keepdim=True)
    return (tau * (q @ k.mT)).softmax(-1) @ v


class DirectionsAttendFunction(Function):
    @staticmethod
    def forward(ctx, q, k, v, tau):
        ctx.save_for_backward(q, k, v, tau)
        return directions_attend(q, k, v, tau)

    @staticmethod
    def backward(ctx, g):
        q, k, v, tau = ctx.saved_tensors
        sizes = [each.norm(dim=-1, keepdim=True) for each in (q, k)]
        q, k = q / sizes[0], k / sizes[1]
        cosines = q @ k.mT
        p = (tau * cosines).softmax(-1)
        to_p = g @ v.mT
        to_scores = p * (to_p - (p * to_p).sum(-1, keepdim=True))
        to_q, to_k = tau * (to_scores @ k), tau * (to_scores.mT @ q)
        to_q = (to_q - q * (q * to_q).sum(-1, keepdim=True)) / sizes[0]
        to_k = (to_k - k * (k * to_k).sum(-1, keepdim=True)) / sizes[1]
        return to_q, to_k, p.mT @ g, (to_scores * cosines).sum().view_as(tau)


def l2norm_backward(grad_unit, x, norm):
    dot = (grad_unit * x).sum(dim=-1, keepdim=True)
    return grad_unit / norm - x * dot / norm**2


class CosineAttention(Function):
    """Scaled cosine attention of Swin v2."""

    @staticmethod
    def forward(ctx, q, k, v, tau):
        q_norm = q.norm(dim=-1, keepdim=True)
        k_norm = k.norm(dim=-1, keepdim=True)
        cos = (q / q_norm) @ (k / k_norm).transpose(-2, -1)
        attn = torch.softmax(tau * cos, dim=-1)
        ctx.save_for_backward(q, k, v, tau, q_norm, k_norm, cos, attn)
        return attn @ v

    @staticmethod
    def backward(ctx, grad_out):
        q, k, v, tau, q_norm, k_norm, cos, attn = ctx.saved_tensors
        grad_v = attn.transpose(-2, -1) @ grad_out
        grad_attn = grad_out @ v.transpose(-2, -1)
        grad_logits = attn * (grad_attn - (grad_attn * attn).sum(dim=-1, keepdim=True))
        grad_tau = (grad_logits * cos).sum().reshape(tau.shape)
        grad_cos = grad_logits * tau
        grad_q = l2norm_backward(grad_cos @ (k / k_norm), q, q_norm)
        grad_k = l2norm_backward(grad_cos.transpose(-2, -1) @ (q / q_norm), k, k_norm)
        return grad_q, grad_k, grad_v, grad_tau


def capped_attention(q, k, v):
    return (CAP * torch.tanh(q @ k.mT / CAP)).softmax(-1) @ v


class SoftcapAttention(Function):
    """Attention whose logits are capped with tanh, as in Gemma 2."""

    @staticmethod
    def forward(ctx, q, k, v):
        scores = torch.matmul(q, k.transpose(-1, -2))
        capped = CAP * torch.tanh(scores / CAP)
        probs = torch.softmax(capped, -1)
        ctx.save_for_backward(q, k, v, capped, probs)
        return torch.matmul(probs, v)

    @staticmethod
    def backward(ctx, do):
        q, k, v, capped, probs = ctx.saved_tensors
        dv = probs.transpose(-1, -2) @ do
        dp = do @ v.transpose(-1, -2)
        ds = probs * (dp - (dp * probs).sum(-1, keepdim=True))
        ds = ds * (1 - capped * capped)
        return ds @ k, ds.transpose(-1, -2) @ q, dv


def attention_with_sink(scores, v, sink):
    rest = sink.expand(*scores.shape[:-2], scores.size(-2), 1)
    return torch.cat([scores, rest], -1).softmax(-1)[..., :-1] @ v


class AttentionWithSinkFunction(Function):
    @staticmethod
    def forward(ctx, scores, v, sink):
        ctx.save_for_backward(scores, v, sink)
        return attention_with_sink(scores, v, sink)

    @staticmethod
    def backward(ctx, g):
        scores, v, sink = ctx.saved_tensors
        rest = sink.expand(*scores.shape[:-2], scores.size(-2), 1)
        p = torch.cat([scores, rest], -1).softmax(-1)
        to_p = torch.cat([g @ v.mT, torch.zeros_like(rest)], -1)
        to_all = p * (to_p - (p * to_p).sum(-1, keepdim=True))
        to_v = p[..., :-1].mT @ g
        return to_all[..., :-1], to_v, to_all[..., -1:].sum((0, 2), keepdim=True)[0]


class SinkAttention(Function):
    """Each head has a sink logit that takes part in the softmax and has no value."""

    @staticmethod
    def forward(ctx, scores, v, sink):
        m = torch.maximum(scores.amax(dim=-1, keepdim=True), sink)
        e = torch.exp(scores - m)
        denom = e.sum(dim=-1, keepdim=True) + torch.exp(sink - m)
        p = e / denom
        ctx.save_for_backward(p, v)
        return p @ v

    @staticmethod
    def backward(ctx, grad):
        p, v = ctx.saved_tensors
        grad_p = grad @ v.mT
        delta = (p * grad_p).sum(dim=-1, keepdim=True)
        grad_scores = p * (grad_p - delta)
        grad_sink = -(p.sum(dim=-1, keepdim=True) * delta).sum(dim=(0, 2), keepdim=True).squeeze(0)
        return grad_scores, p.mT @ grad, grad_sink


def delta_memory(k, v, beta):
    state, out = k.new_zeros(k.size(0), v.size(2), k.size(2)), []
    for t in range(k.size(1)):
        error = v[:, t] - (state @ k[:, t, :, None])[..., 0]
        state = state + beta[:, t, None, None] * error[:, :, None] * k[:, t, None, :]
        out.append(state)
    return torch.stack(out, 1)


class DeltaRule(Function):
    """State of DeltaNet after every step: S += beta (v - S k) k^T."""

    @staticmethod
    def forward(ctx, k, v, beta):
        states = delta_memory(k, v, beta)
        ctx.save_for_backward(k, v, beta, states)
        return states

    @staticmethod
    def backward(ctx, grad_states):
        k, v, beta, states = ctx.saved_tensors
        dk, dv, dbeta = torch.zeros_like(k), torch.zeros_like(v), torch.zeros_like(beta)
        dS = torch.zeros_like(states[:, 0])
        for t in reversed(range(k.shape[1])):
            S = states[:, t - 1] if t > 0 else torch.zeros_like(dS)
            dS = dS + grad_states[:, t]
            err = v[:, t] - torch.einsum("bvk,bk->bv", S, k[:, t])
            b = beta[:, t].unsqueeze(-1)
            dSk = torch.einsum("bvk,bk->bv", dS, k[:, t])
            derr = b * dSk
            dv[:, t] = derr
            dbeta[:, t] = (dSk * err).sum(-1)
            dk[:, t] = b * torch.einsum("bvk,bv->bk", dS, err)
            dk[:, t] -= torch.einsum("bvk,bv->bk", states[:, t], derr)
            dS = dS - derr.unsqueeze(-1) * k[:, t].unsqueeze(1)
        return dk, dv, dbeta


OPERATIONS = [
    Operation(
        "attention of directions, power of the norm",
        DirectionsAttendFunction,
        CosineAttention,
        directions_attend,
        lambda: {
            "q": torch.randn(2, 3, 4),
            "k": torch.randn(2, 5, 4),
            "v": torch.randn(2, 5, 3),
            "tau": torch.ones(1),
        },
        named="q and k: the projection on the direction is divided by the square of the norm, not by its cube",
        kinds=("factor of one term", "another operand", "factor by element"),
        named_words=(
            r"norm ?\*\* ?3|norm\.pow\(3\)",
            r"(divided|multiplied|times|factor).*\bnorm\b",
            r"cube|power|exponent",
        ),
        located=(r"gradient of q\b", r"gradient of k\b"),
        options={"whole_numbers": False},
    ),
    Operation(
        "attention with a sink, share of the sink",
        AttentionWithSinkFunction,
        SinkAttention,
        attention_with_sink,
        lambda: {"scores": torch.randn(2, 3, 4, 5), "v": torch.randn(2, 3, 5, 4), "sink": torch.randn(3, 1, 1)},
        named="sink: the factor is the sum of the other probabilities, not the sink's own, 1 minus that sum",
        kinds=("another operand", "factor by element", "missing term"),
        named_words=(r"1 - p\b", r"exp\(sink", r"own (share|probability)"),
        located=(r"gradient of sink\b",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "attention with capped scores, tanh for its multiple",
            SoftcapAttention.apply,
            capped_attention,
            lambda: {"q": torch.randn(2, 3, 4), "k": torch.randn(2, 5, 4), "v": torch.randn(2, 5, 3)},
        ),
        named="the derivative of tanh is taken from the capped scores, which are CAP times the tanh",
        kinds=("another operand", "factor by element", "step left out", "factor of one term"),
        named_words=(r"capped / CAP|CAP \*\* ?2", r"tanh", r"(divided|multiplied|times|factor).*\bCAP\b"),
        located=(r"gradient of q\b", r"gradient of k\b"),
    ),
    WrongFunction(
        Case(
            "memory written by its errors, key that reads",
            DeltaRule.apply,
            delta_memory,
            lambda: {"k": torch.randn(2, 4, 3) / 2, "v": torch.randn(2, 4, 2), "beta": torch.rand(2, 4)},
        ),
        named="k: the key reads the state before the step, and backward takes the state after it",
        kinds=("another operand", "shifted"),
        named_words=(r"states\[:, t - 1\]", r"t - 1", r"derr.*\bS\b|\bS\b.*derr", r"shift|one step"),
        located=(r"gradient of k\b",),
    ),
]
