"""Indexing: index_select, embeddings."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right


class SelectRows(Function):
    """y = x[index] for x (N, D) and index (K)."""

    @staticmethod
    def forward(ctx, x, index):
        ctx.save_for_backward(index)
        ctx.rows = x.shape[0]
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx, g):
        (index,) = ctx.saved_tensors
        return g.new_zeros(ctx.rows, g.shape[1]).index_add_(0, index, g), None


class SelectRowsWrong(SelectRows):
    @staticmethod
    def backward(ctx, g):
        (index,) = ctx.saved_tensors
        grad = g.new_zeros(ctx.rows, g.shape[1])
        for k in range(len(index) - 1):
            grad[index[k]] += g[k]
        return grad, None


class TiedEmbedding(Function):
    """Scores weight[ids] @ weight^T of all words, for weight (V, D) and ids (B)."""

    @staticmethod
    def forward(ctx, weight, ids):
        ctx.save_for_backward(weight, ids)
        return weight[ids] @ weight.t()

    @staticmethod
    def backward(ctx, g):
        weight, ids = ctx.saved_tensors
        return (g.t() @ weight[ids]).index_add(0, ids, g @ weight), None


class TiedEmbeddingWrong(TiedEmbedding):
    @staticmethod
    def backward(ctx, g):
        weight, ids = ctx.saved_tensors
        return g.t() @ weight[ids], None


class Embedding(Function):
    """Rows ids (B, T) of weight (V, D)."""

    @staticmethod
    def forward(ctx, weight, ids):
        ctx.save_for_backward(ids)
        ctx.shape = weight.shape
        return weight[ids]

    @staticmethod
    def backward(ctx, g):
        (ids,) = ctx.saved_tensors
        return g.new_zeros(ctx.shape).index_put_((ids,), g, accumulate=True), None


class EmbeddingWrong(Embedding):
    @staticmethod
    def backward(ctx, g):
        (ids,) = ctx.saved_tensors
        grad = g.new_zeros(ctx.shape)
        grad[ids] = g
        return grad, None


OPERATIONS = [
    Operation(
        "rows of a matrix",
        SelectRows,
        SelectRowsWrong,
        lambda x, index: x.index_select(0, index),
        lambda: {"x": torch.randn(4, 3), "index": torch.tensor([2, 0, 2, 1, 3, 0])},
        named="the loop ends one index early: the last row of g is not added",
        kinds=("missing term", "few elements"),
        named_words=(
            r"last (row|element|index|output|example|slice)",
            r"(output|row|g)\b.*\[?5.*(missing|ignored|no effect|not used|does not|without)",
            r"(missing|ignored|no effect|not used|does not|without).*(output|row|g)\b.*5",
            r"(gradient|g) of one output .*(ignored|missing)",
        ),
        located=(r"gradient of x", r"row 0|\[0, ?[:\d]|output.*5|last row|index 0|i = 0"),
    ),
    Operation(
        "tied embedding",
        TiedEmbedding,
        TiedEmbeddingWrong,
        lambda weight, ids: weight[ids] @ weight.t(),
        lambda: {"weight": torch.randn(6, 4), "ids": torch.tensor([1, 4, 1])},
        named="weight is used twice, and the gradient of the lookup is missing",
        kinds=("missing term", "few elements"),
        named_words=(
            r"(second|one|other|another) use",
            r"use[sd]? .*(twice|more than once|several times)",
            r"missing (term|part)",
            r"(term|part)s? .*(is|are) missing",
            r"only in .*\bids\b",
        ),
        located=(r"gradient of weight", r"row|ids|\[[14], |use"),
    ),
    Operation(
        "embedding",
        Embedding,
        EmbeddingWrong,
        lambda weight, ids: weight[ids],
        lambda: {"weight": torch.randn(5, 3), "ids": torch.tensor([[1, 4, 1, 0], [2, 1, 4, 2]])},
        named="a word that occurs several times gets the gradient of its last occurrence instead of the sum of all",
        kinds=("missing term", "not summed over the batch"),
        named_words=(
            r"(occur|repeat|duplicate|appear|more than once|several times|twice)",
            r"(one|last|only) .*(occurrence|of the outputs|contribution)",
            r"(not|without) .*(accumulat|added|summed|sum)",
            r"(overwrit|assign).*(instead|not|for)",
            r"(contribution|entries|coefficient)s? .*(is|are)? ?missing",
        ),
        located=(r"gradient of weight", r"rows? |ids|\[[124], "),
    ),
]
WRONG, RIGHT = wrong_and_right(OPERATIONS)
