"""Attention: patterns recalled from a memory that holds keys and values in one."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right


def recalled_patterns(query, patterns, beta):
    return torch.softmax(beta * query @ patterns.mT, -1) @ patterns


class RecalledPatternsFunction(Function):
    @staticmethod
    def forward(ctx, query, patterns, beta):
        similarity = query @ patterns.mT
        weights = torch.softmax(beta * similarity, -1)
        ctx.save_for_backward(query, patterns, beta, similarity, weights)
        return weights @ patterns

    @staticmethod
    def backward(ctx, g):
        query, patterns, beta, similarity, weights = ctx.saved_tensors
        to_weights = g @ patterns.mT
        to_scores = weights * (to_weights - (weights * to_weights).sum(-1, keepdim=True))
        to_query = beta * to_scores @ patterns
        to_patterns = weights.mT @ g + beta * to_scores.mT @ query
        return to_query, to_patterns, (to_scores * similarity).sum()


class HopfieldRetrieval(Function):
    """One update of a modern Hopfield network: softmax(beta * xi X^T) X."""

    @staticmethod
    def forward(ctx, xi, X, beta):
        sim = torch.matmul(xi, X.t())
        p = torch.softmax(beta * sim, dim=-1)
        ctx.save_for_backward(X, beta, sim, p)
        return torch.matmul(p, X)

    @staticmethod
    def backward(ctx, grad_output):
        X, beta, sim, p = ctx.saved_tensors
        grad_p = torch.matmul(grad_output, X.t())
        grad_s = p * (grad_p - (grad_p * p).sum(dim=-1, keepdim=True))
        grad_xi = beta * torch.matmul(grad_s, X)
        grad_X = torch.matmul(p.t(), grad_output)
        grad_beta = (grad_s * sim).sum()
        return grad_xi, grad_X, grad_beta


OPERATIONS = [
    Operation(
        "patterns recalled from a memory, patterns as keys",
        RecalledPatternsFunction,
        HopfieldRetrieval,
        recalled_patterns,
        lambda: {"query": torch.randn(4, 3), "patterns": torch.randn(5, 3), "beta": 0.5 + torch.rand(())},
        named="patterns are keys and values: the gradient of the keys is missing",
        kinds=("missing term",),
        named_words=(r"missing", r"keys?\b|both|through.*(softmax|similarity|sim\b|scores)"),
        located=(r"gradient of (patterns|X)\b",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
