"""Functions that read something else than they should: other dimensions, another tensor, a value after its change."""

from __future__ import annotations

import torch
from torch.autograd import Function

FIRST = torch.tensor([0, 1, 1, 2, 4])
SECOND = torch.tensor([2, 3, 0, 4, 3])


def centred(x, dims):
    return x - x.mean(dims, keepdim=True)


class CentredImages(Function):
    """Each map is centred, and backward centres those of the whole batch."""

    @staticmethod
    def forward(ctx, x):
        ctx.dims = (0, 2, 3)
        return centred(x, (2, 3))

    @staticmethod
    def backward(ctx, g):
        return centred(g, ctx.dims)


class PairsOfRows(Function):
    """Products of rows by two lists, of which one stands for the other in a place."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x[FIRST] * x[SECOND]

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        gx = torch.zeros_like(x)
        gx.index_add_(0, FIRST, g * x[SECOND])
        gx.index_add_(0, SECOND, g * x[SECOND])
        return gx


class WrittenOver(Function):
    """Ages that move on; the gradient of the newborn is read after the row was written over."""

    @staticmethod
    def forward(ctx, x):
        return torch.cat([3 * x.sum(1, keepdim=True), 2 * x[:, :-1]], 1)

    @staticmethod
    def backward(ctx, g):
        g = g.clone()
        g[:, :-1] = 2 * g[:, 1:]
        g[:, -1] = 0
        return g + 3 * g[:, :1]


class NarrowNorm(Function):
    """Rows over the sum of the squares of their first elements, with a part of it for all elements."""

    @staticmethod
    def forward(ctx, x):
        size = x[:, :3].square().sum(1, keepdim=True) + 1
        ctx.save_for_backward(x, size)
        return x / size

    @staticmethod
    def backward(ctx, g):
        x, size = ctx.saved_tensors
        return g / size - 2 * x * (g * x).sum(1, keepdim=True) / size**2


class TwoBounds(Function):
    """The smaller of two products; the mask asks for the factor alone."""

    @staticmethod
    def forward(ctx, x, a):
        ctx.save_for_backward(x, a)
        return torch.min(x * a, x.clamp(-0.5, 0.5) * a)

    @staticmethod
    def backward(ctx, g):
        x, a = ctx.saved_tensors
        inside = (x > -0.5) & (x < 0.5)
        return torch.where(inside, g * a, torch.zeros_like(g)), None
