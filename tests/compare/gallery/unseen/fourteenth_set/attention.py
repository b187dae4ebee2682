"""Softmax: a noisy choice whose backward is that of the probabilities, scores with a table of relative positions."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

TEMPERATURE = 0.7
NOISE = torch.tensor([[0.3, -0.6, 1.2, 0.1], [-0.4, 0.9, 0.2, 0.5], [1.1, -0.2, 0.4, -0.8]])


def noisy_choice(logits):
    probabilities = torch.softmax((logits + NOISE.to(logits)) / TEMPERATURE, 1)
    choice = torch.nn.functional.one_hot(probabilities.argmax(1), logits.shape[1]).to(logits)
    return choice + (probabilities - probabilities.detach())


class NoisyChoiceFunction(Function):
    @staticmethod
    def forward(ctx, logits):
        ctx.save_for_backward(logits)
        return noisy_choice(logits)

    @staticmethod
    def backward(ctx, g):
        (logits,) = ctx.saved_tensors
        probabilities = torch.softmax((logits + NOISE.to(logits)) / TEMPERATURE, 1)
        weighted = probabilities * g
        return (weighted - probabilities * weighted.sum(1, keepdim=True)) / TEMPERATURE


class GumbelSoftmaxST(Function):
    @staticmethod
    def forward(ctx, logits):
        soft = torch.softmax((logits + NOISE.to(logits.dtype)) / TEMPERATURE, dim=-1)
        index = soft.argmax(dim=-1, keepdim=True)
        hard = torch.zeros_like(soft).scatter_(-1, index, 1.0)
        ctx.save_for_backward(soft, hard)
        return hard

    @staticmethod
    def backward(ctx, grad_hard):
        soft, hard = ctx.saved_tensors
        inner = (grad_hard * hard).sum(dim=-1, keepdim=True)
        return soft * (grad_hard - inner) / TEMPERATURE


def relative_weights(scores, table):
    """Softmax of scores (H, L, L) plus table (2 L - 1, H) at the query's position minus the key's."""
    place = torch.arange(scores.shape[1])
    distance = place[:, None] - place + len(place) - 1
    return torch.softmax(scores + table[distance].permute(2, 0, 1), 2)


class RelativeBiasSoftmax(Function):
    @staticmethod
    def forward(ctx, scores, table):
        length = scores.size(-1)
        query, key = torch.meshgrid(torch.arange(length), torch.arange(length), indexing="ij")
        bias = table[query - key + length - 1]
        attn = torch.softmax(scores + bias.permute(2, 0, 1), dim=-1)
        ctx.save_for_backward(attn)
        ctx.num_buckets = table.size(0)
        return attn

    @staticmethod
    def backward(ctx, grad_attn):
        (attn,) = ctx.saved_tensors
        heads, length, _ = attn.shape
        grad_scores = attn * (grad_attn - (grad_attn * attn).sum(dim=-1, keepdim=True))
        pos = torch.arange(length)
        bucket = (pos.unsqueeze(0) - pos.unsqueeze(1) + length - 1).flatten()
        grad_table = attn.new_zeros(ctx.num_buckets, heads)
        grad_table.index_add_(0, bucket, grad_scores.flatten(1).t())
        return grad_scores, grad_table


OPERATIONS = [
    Operation(
        "noisy choice, choice inside of the sum",
        NoisyChoiceFunction,
        GumbelSoftmaxST,
        noisy_choice,
        lambda: (torch.randn(3, 4),),
        named="the sum in the softmax's derivative takes the choice, where the probabilities belong",
        kinds=("another operand", "step left out"),
        named_words=(r"\bhard\b|choice|one.hot", r"output|result"),
        located=(r"gradient of (logits|input 0)",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "table of relative positions, key minus query",
            RelativeBiasSoftmax.apply,
            relative_weights,
            lambda: {"scores": torch.randn(2, 5, 5), "table": torch.randn(9, 2)},
        ),
        named="table: the positions are the key's minus the query's, so the rows of the gradient are reversed",
        kinds=("flipped", "permuted", "transposed", "not transposed", "another operand"),
        named_words=(r"flip", r"revers", r"transpos", r"permut|order of", r"swap|exchang|sign"),
        located=(r"gradient of table",),
    ),
]
