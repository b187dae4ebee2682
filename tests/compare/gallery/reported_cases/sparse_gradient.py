"""A sparse gradient, as embeddings return it; right. Expected: compared (made dense), no traceback."""

import torch
import torch.nn.functional as F
from torch.autograd import Function

import compare


class Take(Function):
    @staticmethod
    def forward(ctx, w, i):
        ctx.save_for_backward(i)
        ctx.shape = w.shape
        return w[i]

    @staticmethod
    def backward(ctx, g):
        (i,) = ctx.saved_tensors
        return torch.sparse_coo_tensor(i[None], g, ctx.shape), None


def draw():
    return {"w": torch.randn(6, 3), "i": torch.tensor([0, 2, 2, 5])}


CASES = [
    compare.Case("sparse beside dense", Take.apply, lambda w, i: F.embedding(i, w), draw),
    compare.Case("sparse beside sparse", Take.apply, lambda w, i: F.embedding(i, w, sparse=True), draw),
]
