"""Indexing: mean of embeddings, largest elements, sorting."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

K = 2


def mean_embedding(weight, ids, lengths):
    """Mean of weight[ids[b, 0]], ..., weight[ids[b, lengths[b] - 1]] for each b."""
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).to(weight.dtype)
    return (weight[ids] * mask[:, :, None]).sum(1) / lengths[:, None]


class EmbeddingBag(Function):
    """Mean of the embeddings of each bag, for weight (V, D), ids (B, T) and lengths (B)."""

    @staticmethod
    def forward(ctx, weight, ids, lengths):
        ctx.save_for_backward(ids, lengths)
        ctx.shape = weight.shape
        return mean_embedding(weight, ids, lengths)

    @staticmethod
    def backward(ctx, g):
        _, lengths = ctx.saved_tensors
        return EmbeddingBag.add_rows(ctx, g / lengths[:, None]), None, None

    @staticmethod
    def add_rows(ctx, g):
        ids, lengths = ctx.saved_tensors
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).to(g.dtype)
        rows = g[:, None] * mask[:, :, None]
        return g.new_zeros(ctx.shape).index_add_(0, ids.flatten(), rows.flatten(0, 1))


class EmbeddingBagWrong(EmbeddingBag):
    @staticmethod
    def backward(ctx, g):
        return EmbeddingBag.add_rows(ctx, g), None, None


class Largest(Function):
    """The two largest elements of each row, in descending order."""

    @staticmethod
    def forward(ctx, x):
        values, index = x.topk(K, dim=1)
        ctx.save_for_backward(index)
        ctx.shape = x.shape
        return values

    @staticmethod
    def backward(ctx, g):
        (index,) = ctx.saved_tensors
        return g.new_zeros(ctx.shape).scatter(1, index, g)


class LargestWrong(Largest):
    @staticmethod
    def backward(ctx, g):
        grad = g.new_zeros(ctx.shape)
        grad[:, :K] = g
        return grad


class Sort(Function):
    """Each row of x in ascending order; equal elements stay in their order."""

    @staticmethod
    def forward(ctx, x):
        values, index = x.sort(dim=1, stable=True)
        ctx.save_for_backward(index)
        return values

    @staticmethod
    def backward(ctx, g):
        (index,) = ctx.saved_tensors
        return torch.zeros_like(g).scatter(1, index, g)


class SortWrong(Sort):
    @staticmethod
    def backward(ctx, g):
        (index,) = ctx.saved_tensors
        return g.gather(1, index)


OPERATIONS = [
    Operation(
        "mean of embeddings",
        EmbeddingBag,
        EmbeddingBagWrong,
        mean_embedding,
        lambda: {
            "weight": torch.randn(6, 3),
            "ids": torch.tensor([[0, 1, 2], [3, 1, 4], [5, 0, 0], [2, 3, 5]]),
            "lengths": torch.tensor([3, 2, 1, 2]),
        },
        named="not divided by the length of the bag",
        kinds=("constant factor",),
        named_words=(
            r"lengths?\b",
            r"(factor|times|number)\b.*(each|every|per|of|for) .*(output|row|example|bag|g\b)",
            r"(output|row|example|g)\w*\b.*(factor|times)",
            r"sum .*(instead|in place|for).*mean|mean .*(instead|in place|not).*sum",
            r"divi(ded|sor|des)",
        ),
        located=(r"gradient of weight",),
    ),
    Operation(
        "two largest of each row",
        Largest,
        LargestWrong,
        lambda x: x.topk(K, dim=1).values,
        lambda: torch.randn(4, 5),
        named="the gradient is in columns 0 and 1 instead of those of the largest elements",
        kinds=("permuted",),
        named_words=(
            r"(column|place|ind(ex|ices)|position)s?\b.*(instead|in place|other|another|wrong|moved)",
            r"(other|another|wrong|first) (column|place|ind(ex|ices)|position|element)",
            r"permut",
            r"columns? 0 (and|to|,|-|–)",
        ),
        located=(r"gradient of (x|input 0)", r"column|place|index|position|row|dimension 1|\bj\b"),
    ),
    Operation(
        "sorted rows",
        Sort,
        SortWrong,
        lambda x: x.sort(dim=1, stable=True).values,
        lambda: torch.randn(4, 5),
        named="the permutation instead of its inverse: gather instead of scatter",
        kinds=("permuted",),
        named_words=(
            r"permut",
            r"inverse",
            r"gather|scatter",
            r"(column|place|ind(ex|ices)|position)s?\b.*(instead|in place|other|another|wrong|moved)",
            r"transpos",
            r"(other|another|wrong) (order|column|place|ind(ex|ices)|position)",
        ),
        located=(r"gradient of (x|input 0)",),
    ),
]
WRONG, RIGHT = wrong_and_right(OPERATIONS)
