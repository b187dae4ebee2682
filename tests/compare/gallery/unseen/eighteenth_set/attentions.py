"""Attention: squared rectifier, one latent for keys and values, forget gates."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right


def squared_rectifier_attention(q, k, v):
    return (q @ k.mT / k.size(1)).relu().square() @ v


class SquaredRectifierFunction(Function):
    @staticmethod
    def forward(ctx, q, k, v):
        positive = (q @ k.mT / k.size(1)).relu()
        ctx.save_for_backward(q, k, v, positive)
        return positive.square() @ v

    @staticmethod
    def backward(ctx, g):
        q, k, v, positive = ctx.saved_tensors
        to_scores = 2 * positive * (g @ v.mT) / k.size(1)
        return to_scores @ k, to_scores.mT @ q, positive.square().mT @ g


class ReLU2Attention(Function):
    """Attention of a gated attention unit: relu(q k^T / n)^2 v."""

    @staticmethod
    def forward(ctx, q, k, v):
        n = k.shape[1]
        sim = torch.einsum("bid,bjd->bij", q, k) / n
        attn = F.relu(sim) ** 2
        ctx.save_for_backward(q, k, v, attn)
        ctx.n = n
        return torch.einsum("bij,bjd->bid", attn, v)

    @staticmethod
    def backward(ctx, grad_out):
        q, k, v, attn = ctx.saved_tensors
        grad_v = torch.einsum("bij,bid->bjd", attn, grad_out)
        grad_attn = torch.einsum("bid,bjd->bij", grad_out, v)
        grad_sim = grad_attn * 2 * attn / ctx.n
        grad_q = torch.einsum("bij,bjd->bid", grad_sim, k)
        grad_k = torch.einsum("bij,bid->bjd", grad_sim, q)
        return grad_q, grad_k, grad_v


def latent_attention(q, x, w_down, w_key, w_value):
    latent = x @ w_down.mT
    keys, values = latent @ w_key.mT, latent @ w_value.mT
    return (q @ keys.mT / keys.size(-1) ** 0.5).softmax(-1) @ values


class LatentAttentionFunction(Function):
    @staticmethod
    def forward(ctx, q, x, w_down, w_key, w_value):
        latent = x @ w_down.mT
        keys, values = latent @ w_key.mT, latent @ w_value.mT
        weights = (q @ keys.mT / keys.size(-1) ** 0.5).softmax(-1)
        ctx.save_for_backward(q, x, w_down, w_key, w_value, latent, weights)
        return weights @ values

    @staticmethod
    def backward(ctx, g):
        q, x, w_down, w_key, w_value, latent, weights = ctx.saved_tensors
        keys, values = latent @ w_key.mT, latent @ w_value.mT
        to_values, to_weights = weights.mT @ g, g @ values.mT
        to_scores = weights * (to_weights - (weights * to_weights).sum(-1, keepdim=True)) / keys.size(-1) ** 0.5
        to_keys = to_scores.mT @ q
        to_latent = to_keys @ w_key + to_values @ w_value
        return (
            to_scores @ keys,
            to_latent @ w_down,
            (to_latent.mT @ x).sum(0),
            (to_keys.mT @ latent).sum(0),
            (to_values.mT @ latent).sum(0),
        )


class MLA(Function):
    """Multi-head latent attention (one head): the cache holds c = W_dkv x, keys and values are made of it."""

    @staticmethod
    def forward(ctx, q, x, W_dkv, W_uk, W_uv):
        c = F.linear(x, W_dkv)
        k = F.linear(c, W_uk)
        v = F.linear(c, W_uv)
        ctx.scale = k.shape[-1] ** -0.5
        p = torch.softmax(torch.bmm(q, k.transpose(1, 2)) * ctx.scale, dim=-1)
        ctx.save_for_backward(q, x, W_dkv, W_uk, W_uv, c, k, v, p)
        return torch.bmm(p, v)

    @staticmethod
    def backward(ctx, do):
        q, x, W_dkv, W_uk, W_uv, c, k, v, p = ctx.saved_tensors
        rank, dim = W_dkv.shape
        dv = torch.bmm(p.transpose(1, 2), do)
        dp = torch.bmm(do, v.transpose(1, 2))
        ds = p * (dp - (dp * p).sum(-1, keepdim=True)) * ctx.scale
        dq = torch.bmm(ds, k)
        dk = torch.bmm(ds.transpose(1, 2), q)

        c2d = c.reshape(-1, rank)
        dc = dk @ W_uk
        dW_uk = dk.reshape(-1, dk.shape[-1]).t() @ c2d
        dc = dv @ W_uv
        dW_uv = dv.reshape(-1, dv.shape[-1]).t() @ c2d

        dx = dc @ W_dkv
        dW_dkv = dc.reshape(-1, rank).t() @ x.reshape(-1, dim)
        return dq, dx, dW_dkv, dW_uk, dW_uv


def forgetting_attention(q, k, v, gate):
    total = F.logsigmoid(gate).cumsum(1)
    scores = q @ k.mT / q.size(-1) ** 0.5 + total[:, :, None] - total[:, None]
    past = torch.ones_like(scores, dtype=torch.bool).tril()
    return scores.masked_fill(~past, -torch.inf).softmax(-1) @ v


class ForgettingFunction(Function):
    @staticmethod
    def forward(ctx, q, k, v, gate):
        total = F.logsigmoid(gate).cumsum(1)
        scores = q @ k.mT / q.size(-1) ** 0.5 + total[:, :, None] - total[:, None]
        past = torch.ones_like(scores, dtype=torch.bool).tril()
        weights = scores.masked_fill(~past, -torch.inf).softmax(-1)
        ctx.save_for_backward(q, k, v, gate, weights)
        return weights @ v

    @staticmethod
    def backward(ctx, g):
        q, k, v, gate, weights = ctx.saved_tensors
        to_weights = g @ v.mT
        to_scores = weights * (to_weights - (to_weights * weights).sum(-1, keepdim=True))
        to_total = to_scores.sum(2) - to_scores.sum(1)
        to_gate = to_total.flip(1).cumsum(1).flip(1) * torch.sigmoid(-gate)
        to_scores = to_scores / q.size(-1) ** 0.5
        return to_scores @ k, to_scores.mT @ q, weights.mT @ g, to_gate


class FoXAttention(Function):
    """Forgetting transformer: causal softmax attention whose scores decay with the product of forget gates."""

    @staticmethod
    def forward(ctx, q, k, v, f):
        T, d = q.shape[1:]
        scale = d**-0.5
        c = torch.cumsum(F.logsigmoid(f), dim=-1)
        s = torch.matmul(q, k.transpose(-1, -2)) * scale
        s = s + (c.unsqueeze(-1) - c.unsqueeze(-2))
        causal = torch.triu(torch.ones(T, T, dtype=torch.bool, device=q.device), diagonal=1)
        p = torch.softmax(s.masked_fill(causal, float("-inf")), dim=-1)
        ctx.save_for_backward(q, k, v, f, p)
        ctx.scale = scale
        return torch.matmul(p, v)

    @staticmethod
    def backward(ctx, do):
        q, k, v, f, p = ctx.saved_tensors
        dp = torch.matmul(do, v.transpose(-1, -2))
        ds = p * (dp - (p * dp).sum(dim=-1, keepdim=True))
        # every row of ds sums to 0, so only the keys' side of c is left
        dc = -ds.sum(dim=-2)
        df = torch.cumsum(dc.flip(-1), dim=-1) * torch.sigmoid(-f)
        ds = ds * ctx.scale
        dq = torch.matmul(ds, k)
        dk = torch.matmul(ds.transpose(-1, -2), q)
        dv = torch.matmul(p.transpose(-1, -2), do)
        return dq, dk, dv, df


OPERATIONS = [
    Operation(
        "attention of squared rectifiers, square for the root",
        SquaredRectifierFunction,
        ReLU2Attention,
        squared_rectifier_attention,
        lambda: {"q": torch.randn(2, 4, 3), "k": torch.randn(2, 5, 3), "v": torch.randn(2, 5, 2)},
        named="the derivative of the square is twice the rectified score, and its square was saved",
        kinds=("another operand", "factor by element", "wrong intermediate value"),
        named_words=(r"relu", r"attn", r"square|\*\* ?2|pow"),
        located=(r"gradients? of (q|k)\b",),
        options={"kinks": True},
    ),
    Operation(
        "one latent for keys and values, keys overwritten",
        LatentAttentionFunction,
        MLA,
        latent_attention,
        lambda: {
            "q": torch.randn(2, 3, 4),
            "x": torch.randn(2, 5, 6),
            "w_down": torch.randn(3, 6),
            "w_key": torch.randn(4, 3),
            "w_value": torch.randn(4, 3),
        },
        named="the latent's gradient from the keys is overwritten by that from the values",
        kinds=("missing term",),
        named_words=(r"missing", r"dc.*W_uk|W_uk.*dc", r"keys"),
        located=(r"gradients? of (x|w_down|W_dkv)\b",),
    ),
    Operation(
        "attention that forgets, sums not turned back",
        ForgettingFunction,
        FoXAttention,
        forgetting_attention,
        lambda: {
            "q": torch.randn(2, 5, 3),
            "k": torch.randn(2, 5, 3),
            "v": torch.randn(2, 5, 2),
            "gate": torch.randn(2, 5),
        },
        named="the gradient of the running sum is a sum from the end, and the result stays in reversed order",
        kinds=("flipped", "permuted", "another operand", "step left out"),
        named_words=(r"flip", r"revers", r"order"),
        located=(r"gradient of (gate|f)\b",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
