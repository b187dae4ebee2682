"""Adapters and routers: a low-rank update of directions, experts that are mixed by their chosen scores."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

SCALING = 0.5


def updated_directions(x, weight, down, up, magnitude):
    v = weight + SCALING * up @ down
    return x @ (magnitude[:, None] * v / v.norm(dim=1, keepdim=True)).mT


class UpdatedDirectionsFunction(Function):
    @staticmethod
    def forward(ctx, x, weight, down, up, magnitude):
        ctx.save_for_backward(x, weight, down, up, magnitude)
        return updated_directions(x, weight, down, up, magnitude)

    @staticmethod
    def backward(ctx, g):
        x, weight, down, up, magnitude = ctx.saved_tensors
        v = weight + SCALING * up @ down
        size = v.norm(dim=1, keepdim=True)
        direction = v / size
        to_weight = g.mT @ x
        along = (to_weight * direction).sum(1)
        to_v = magnitude[:, None] / size * (to_weight - direction * along[:, None])
        to_x = g @ (magnitude[:, None] * direction)
        return to_x, to_v, SCALING * up.mT @ to_v, SCALING * to_v @ down.mT, along


class DoRALinear(Function):
    """Weight-decomposed low-rank adaptation: m * (W + s B A) / ||W + s B A||, the norm taken over each row."""

    @staticmethod
    def forward(ctx, x, W, A, B, m):
        V = W + SCALING * (B @ A)
        norm = torch.linalg.vector_norm(V, dim=1, keepdim=True)
        V_hat = V / norm
        ctx.save_for_backward(x, A, B, m, V_hat, norm)
        return x @ (m.unsqueeze(1) * V_hat).t()

    @staticmethod
    def backward(ctx, grad_output):
        x, A, B, m, V_hat, norm = ctx.saved_tensors
        scaled = m.unsqueeze(1) * V_hat
        grad_x = grad_output @ scaled
        grad_scaled = grad_output.t() @ x
        grad_m = (grad_scaled * V_hat).sum(dim=1)
        grad_hat = grad_scaled * m.unsqueeze(1)
        grad_V = (grad_hat - V_hat * (V_hat * grad_hat).sum(dim=0)) / norm
        grad_B = SCALING * (grad_V @ A.t())
        grad_A = SCALING * (B.t() @ grad_V)
        return grad_x, grad_V, grad_A, grad_B, grad_m


def mixed_experts(x, chosen, logits, experts):
    weights = logits.gather(1, chosen).softmax(1)
    return torch.einsum("nk,nd,nkdo->no", weights, x, experts[chosen])


class MixedExpertsFunction(Function):
    @staticmethod
    def forward(ctx, x, chosen, logits, experts):
        ctx.save_for_backward(x, chosen, logits, experts)
        return mixed_experts(x, chosen, logits, experts)

    @staticmethod
    def backward(ctx, g):
        x, chosen, logits, experts = ctx.saved_tensors
        weights = logits.gather(1, chosen).softmax(1)
        kernels = experts[chosen]
        to_weights = torch.einsum("no,nd,nkdo->nk", g, x, kernels)
        to_chosen = weights * (to_weights - (weights * to_weights).sum(1, keepdim=True))
        to_kernels = torch.einsum("no,nk,nd->nkdo", g, weights, x)
        to_experts = torch.zeros_like(experts).index_add(0, chosen.flatten(), to_kernels.flatten(0, 1))
        to_x = torch.einsum("no,nk,nkdo->nd", g, weights, kernels)
        return to_x, None, torch.zeros_like(logits).scatter(1, chosen, to_chosen), to_experts


class MoECombine(Function):
    """Apply the chosen experts to each token, and mix them by the softmax over the chosen router logits."""

    @staticmethod
    def forward(ctx, x, topk_idx, router_logits, experts):
        gates = torch.softmax(torch.gather(router_logits, 1, topk_idx), dim=1)
        out = x.new_zeros(x.size(0), experts.size(2))
        for e in range(experts.size(0)):
            token, rank = torch.where(topk_idx == e)
            out.index_add_(0, token, gates[token, rank, None] * (x[token] @ experts[e]))
        ctx.save_for_backward(x, topk_idx, gates, experts)
        ctx.num_experts = router_logits.size(1)
        return out

    @staticmethod
    def backward(ctx, grad_out):
        x, topk_idx, gates, experts = ctx.saved_tensors
        grad_x, grad_experts, grad_gates = torch.zeros_like(x), torch.zeros_like(experts), torch.zeros_like(gates)
        for e in range(ctx.num_experts):
            token, rank = torch.where(topk_idx == e)
            gate, go = gates[token, rank, None], grad_out[token]
            grad_x.index_add_(0, token, gate * (go @ experts[e].t()))
            grad_experts[e] = x[token].t() @ (gate * go)
            grad_gates[token, rank] = (go * (x[token] @ experts[e])).sum(dim=1)
        grad_router = None
        if ctx.needs_input_grad[1]:
            grad_gates = gates * (grad_gates - (grad_gates * gates).sum(dim=1, keepdim=True))
            grad_router = grad_gates.new_zeros(x.size(0), ctx.num_experts).scatter_(1, topk_idx, grad_gates)
        return grad_x, None, grad_router, grad_experts


OPERATIONS = [
    Operation(
        "low-rank update of directions, sum over the wrong dimension",
        UpdatedDirectionsFunction,
        DoRALinear,
        updated_directions,
        lambda: {
            "x": torch.randn(6, 4),
            "weight": torch.randn(5, 4),
            "down": torch.randn(2, 4),
            "up": torch.randn(5, 2),
            "magnitude": torch.rand(5) + 0.5,
        },
        named="the products with the directions are summed over the rows, not within each row as the norms are",
        kinds=("wrong sum", "another operand", "missing term"),
        named_words=(r"dim ?= ?1|dim ?= ?0", r"keepdim", r"sum.*(dimension|row|column)"),
        located=(r"gradient of weight\b", r"gradient of down\b", r"gradient of up\b"),
        options={"whole_numbers": False},
    ),
    Operation(
        "mixed experts, asks whether the indices need a gradient",
        MixedExpertsFunction,
        MoECombine,
        mixed_experts,
        lambda: {
            "x": torch.randn(5, 3),
            "chosen": torch.rand(5, 4).topk(2).indices,
            "logits": torch.randn(5, 4),
            "experts": torch.randn(4, 3, 2),
        },
        named="logits: backward asks needs_input_grad of the indices, which is never true, and returns None",
        kinds=("zero", "none", "depends on which inputs require a gradient"),
        named_words=(r"needs_input_grad", r"returns None|is None"),
        located=(r"gradient of (router_)?logits\b",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
