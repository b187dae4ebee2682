"""Attention: additive scores, a memory of two linear maps, a bag of instances."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right


def additive_attention(query, keys, values, v):
    hidden = torch.tanh(query[:, None, :] + keys[None, :, :])
    return torch.softmax(hidden @ v, -1) @ values


class AdditiveAttentionFunction(Function):
    @staticmethod
    def forward(ctx, query, keys, values, v):
        hidden = torch.tanh(query[:, None, :] + keys[None, :, :])
        weights = torch.softmax(hidden @ v, -1)
        ctx.save_for_backward(hidden, weights, values, v)
        return weights @ values

    @staticmethod
    def backward(ctx, g):
        hidden, weights, values, v = ctx.saved_tensors
        to_weights = g @ values.mT
        to_scores = weights * (to_weights - (weights * to_weights).sum(-1, keepdim=True))
        to_sum = to_scores[..., None] * v * (1 - hidden**2)
        return to_sum.sum(1), to_sum.sum(0), weights.mT @ g, (to_scores[..., None] * hidden).sum((0, 1))


class BahdanauAttention(Function):
    """Context of Bahdanau attention; query and keys are already projected."""

    @staticmethod
    def forward(ctx, query, keys, values, v):
        energy = query.unsqueeze(1) + keys.unsqueeze(0)
        alpha = torch.softmax(torch.matmul(torch.tanh(energy), v), dim=1)
        ctx.save_for_backward(energy, alpha, values, v)
        return alpha.mm(values)

    @staticmethod
    def backward(ctx, grad_context):
        energy, alpha, values, v = ctx.saved_tensors
        grad_values = alpha.t().mm(grad_context)
        grad_alpha = grad_context.mm(values.t())
        grad_score = alpha * (grad_alpha - (grad_alpha * alpha).sum(dim=1, keepdim=True))

        grad_v = torch.einsum("qk,qkd->d", grad_score, torch.tanh(energy))
        grad_energy = grad_score.unsqueeze(-1) * v * (1 - energy * energy)
        grad_query = grad_energy.sum(dim=1)
        grad_keys = grad_energy.sum(dim=0)
        return grad_query, grad_keys, grad_values, grad_v


def memory_of_maps(x, mk, mv):
    weights = torch.softmax(x @ mk.mT, 0)
    return weights / weights.sum(1, keepdim=True) @ mv


class MemoryOfMapsFunction(Function):
    @staticmethod
    def forward(ctx, x, mk, mv):
        weights = torch.softmax(x @ mk.mT, 0)
        total = weights.sum(1, keepdim=True)
        ctx.save_for_backward(x, mk, mv, weights, total)
        return weights / total @ mv

    @staticmethod
    def backward(ctx, g):
        x, mk, mv, weights, total = ctx.saved_tensors
        shares = weights / total
        to_shares = g @ mv.mT
        to_weights = (to_shares - (to_shares * shares).sum(1, keepdim=True)) / total
        to_scores = weights * (to_weights - (to_weights * weights).sum(0))
        return to_scores @ mk, to_scores.mT @ x, shares.mT @ g


class ExternalAttention(Function):
    """External attention with double normalization: softmax over tokens, then l1 over the memory."""

    @staticmethod
    def forward(ctx, x, Mk, Mv):
        attn = torch.softmax(x @ Mk.T, dim=0)
        norm = attn.sum(dim=1, keepdim=True)
        attn_n = attn / norm
        ctx.save_for_backward(x, Mk, Mv, attn, norm, attn_n)
        return attn_n @ Mv

    @staticmethod
    def backward(ctx, grad_out):
        x, Mk, Mv, attn, norm, attn_n = ctx.saved_tensors
        grad_Mv = attn_n.T @ grad_out
        grad_attn_n = grad_out @ Mv.T
        grad_attn = grad_attn_n / norm
        grad_logits = attn * (grad_attn - (grad_attn * attn).sum(dim=0, keepdim=True))
        return grad_logits @ Mk, grad_logits.T @ x, grad_Mv


def pooled_instances(h, v, u, w):
    weights = torch.softmax((torch.tanh(h @ v) * torch.sigmoid(h @ u)) @ w, 0)
    return weights @ h


class PooledInstancesFunction(Function):
    @staticmethod
    def forward(ctx, h, v, u, w):
        t, s = torch.tanh(h @ v), torch.sigmoid(h @ u)
        weights = torch.softmax((t * s) @ w, 0)
        ctx.save_for_backward(h, v, u, w, t, s, weights)
        return weights @ h

    @staticmethod
    def backward(ctx, g):
        h, v, u, w, t, s, weights = ctx.saved_tensors
        to_weights = h @ g
        to_scores = weights * (to_weights - weights @ to_weights)
        to_gated = to_scores[:, None] * w
        to_t, to_s = to_gated * s * (1 - t * t), to_gated * t * s * (1 - s)
        to_h = weights[:, None] * g + to_t @ v.mT + to_s @ u.mT
        return to_h, h.mT @ to_t, h.mT @ to_s, to_scores @ (t * s)


class GatedMILPooling(Function):
    """Gated attention pooling of a bag (Ilse et al.), H is instances x features."""

    @staticmethod
    def forward(ctx, H, V, U, w):
        A_V = torch.tanh(H.mm(V))
        A_U = torch.sigmoid(H.mm(U))
        a = torch.softmax((A_V * A_U).mv(w), dim=0)
        ctx.save_for_backward(H, V, U, w, A_V, A_U, a)
        return (a.unsqueeze(1) * H).sum(dim=0)

    @staticmethod
    def backward(ctx, grad_z):
        H, V, U, w, A_V, A_U, a = ctx.saved_tensors
        grad_a = H.mv(grad_z)
        grad_score = grad_a * a * (1 - a)

        grad_w = (A_V * A_U).t().mv(grad_score)
        grad_gated = torch.outer(grad_score, w)
        grad_pre_V = grad_gated * A_U * (1 - A_V**2)
        grad_pre_U = grad_gated * A_V * A_U * (1 - A_U)
        grad_V = H.t().mm(grad_pre_V)
        grad_U = H.t().mm(grad_pre_U)
        grad_H = torch.outer(a, grad_z) + grad_pre_V.mm(V.t()) + grad_pre_U.mm(U.t())
        return grad_H, grad_V, grad_U, grad_w


OPERATIONS = [
    Operation(
        "additive scores, sum in the place of its tanh",
        AdditiveAttentionFunction,
        BahdanauAttention,
        additive_attention,
        lambda: {
            "query": torch.randn(3, 4),
            "keys": torch.randn(5, 4),
            "values": torch.randn(5, 2),
            "v": torch.randn(4),
        },
        named="tanh's derivative is 1 - tanh(energy)^2; backward squares the energy, the argument of tanh",
        kinds=("another operand", "factor by element", "step left out"),
        named_words=(r"tanh", r"energy"),
        located=(r"gradient of (query|keys)\b",),
    ),
    Operation(
        "memory of two linear maps, sum over the memory as a constant",
        MemoryOfMapsFunction,
        ExternalAttention,
        memory_of_maps,
        lambda: {"x": torch.randn(4, 3), "mk": torch.randn(5, 3), "mv": torch.randn(5, 2)},
        named="the sum over the memory depends on the weights; backward only divides by it, as by a constant",
        kinds=("missing term", "step left out"),
        named_words=(r"missing|constant", r"\bnorm\b|denominator|second argument.*div|sum over"),
        located=(r"gradient of (x|mk|Mk)\b",),
    ),
    Operation(
        "bag of instances, diagonal of the softmax's Jacobian",
        PooledInstancesFunction,
        GatedMILPooling,
        pooled_instances,
        lambda: {
            "h": torch.randn(5, 4),
            "v": torch.randn(4, 3),
            "u": torch.randn(4, 3),
            "w": torch.randn(3),
        },
        named="softmax's derivative is that of a sigmoid, a * (1 - a): the other instances are missing",
        kinds=("wrong half", "another operand", "missing term", "step left out", "wrong sum"),
        named_words=(r"softmax", r"diagonal", r"sigmoid", r"\bsum\b"),
        located=(r"gradient of (h|v|u|w|H|V|U)\b",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
