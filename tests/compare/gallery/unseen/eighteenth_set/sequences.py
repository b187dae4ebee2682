"""Sequences: states with a gate for each feature, keys and values shortened."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import WrongFunction


def gated_states(q, k, v, a):
    state, rows = q.new_zeros(q.size(0), q.size(2), v.size(2)), []
    for t in range(q.size(1)):
        state = a[:, t, :, None] * state + k[:, t, :, None] * v[:, t, None]
        rows.append((q[:, t, None] @ state).squeeze(1))
    return torch.stack(rows, 1)


class GatedLinearAttention(Function):
    """S_t = diag(a_t) S_{t-1} + k_t v_t^T, o_t = S_t^T q_t."""

    @staticmethod
    def forward(ctx, q, k, v, a):
        B, T, K = q.shape
        S = torch.zeros(B, K, v.shape[-1], dtype=q.dtype, device=q.device)
        states, out = [S], []
        for t in range(T):
            S = a[:, t].unsqueeze(-1) * S + torch.einsum("bk,bv->bkv", k[:, t], v[:, t])
            states.append(S)
            out.append(torch.einsum("bk,bkv->bv", q[:, t], S))
        ctx.save_for_backward(q, k, v, a, *states)
        return torch.stack(out, dim=1)

    @staticmethod
    def backward(ctx, do):
        q, k, v, a, *states = ctx.saved_tensors
        dq, dk, dv, da = (torch.zeros_like(t) for t in (q, k, v, a))
        dS = torch.zeros_like(states[0])
        for t in reversed(range(q.shape[1])):
            dq[:, t] = torch.einsum("bv,bkv->bk", do[:, t], states[t + 1])
            dS = a[:, t].unsqueeze(-1) * dS + torch.einsum("bk,bv->bkv", q[:, t], do[:, t])
            dk[:, t] = torch.einsum("bkv,bv->bk", dS, v[:, t])
            dv[:, t] = torch.einsum("bkv,bk->bv", dS, k[:, t])
            da[:, t] = (dS * states[t]).sum(-1)
        return dq, dk, dv, da


def shortened_attention(q, k, v, e):
    return (q @ (e @ k).mT / q.size(-1) ** 0.5).softmax(-1) @ (e @ v)


def softmax_grad(p, dp):
    return p * (dp - (p * dp).sum(-2, keepdim=True))


class LinformerAttention(Function):
    """Keys and values are projected along the sequence by the same matrix E."""

    @staticmethod
    def forward(ctx, q, k, v, E):
        k_proj = torch.matmul(E, k)
        v_proj = torch.matmul(E, v)
        scale = q.size(-1) ** -0.5
        p = torch.softmax(q @ k_proj.transpose(1, 2) * scale, dim=-1)
        ctx.scale = scale
        ctx.save_for_backward(q, k, v, E, k_proj, v_proj, p)
        return p @ v_proj

    @staticmethod
    def backward(ctx, grad):
        q, k, v, E, k_proj, v_proj, p = ctx.saved_tensors
        ds = softmax_grad(p, grad @ v_proj.transpose(1, 2)) * ctx.scale
        gk_proj = ds.transpose(1, 2) @ q
        gv_proj = p.transpose(1, 2) @ grad
        gE = (gk_proj @ k.transpose(1, 2) + gv_proj @ v.transpose(1, 2)).sum(0)
        return ds @ k_proj, E.t() @ gk_proj, E.t() @ gv_proj, gE


WRONG = [
    WrongFunction(
        Case(
            "states with a gate for each feature, gate of the step before",
            GatedLinearAttention.apply,
            gated_states,
            lambda: {
                "q": torch.randn(2, 5, 3),
                "k": torch.randn(2, 5, 3),
                "v": torch.randn(2, 5, 2),
                "a": torch.rand(2, 5, 3),
            },
        ),
        named="the state's gradient is carried back with the gate of its own step, not with that of the step after",
        kinds=("another operand", "shifted", "wrong intermediate value"),
        named_words=(r"t \+ 1", r"step (before|after)|later step"),
        located=(r"gradients? of .*\b(k|v|a)\b",),
    ),
    WrongFunction(
        Case(
            "keys and values shortened, sum over the queries",
            LinformerAttention.apply,
            shortened_attention,
            lambda: {
                "q": torch.randn(2, 4, 3),
                "k": torch.randn(2, 6, 3),
                "v": torch.randn(2, 6, 2),
                "e": torch.randn(3, 6),
            },
        ),
        named="the softmax's derivative sums over the queries instead of the shortened keys",
        kinds=("wrong sum", "another operand"),
        named_words=(r"sum", r"-2|-1|dimension"),
        located=(r"gradients? of .*\b(q|k|e|E)\b",),
    ),
]

RIGHT: list[Case] = []
