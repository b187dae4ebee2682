"""Right numbers in a wrong shape. Expected: wrong shape, and which is right; nothing about sums."""

import torch
from torch.autograd import Function

import compare


def add(shape):
    class Add(Function):
        @staticmethod
        def forward(ctx, x, b):
            return x + b

        @staticmethod
        def backward(ctx, g):
            return g, g.sum(0).reshape(shape)

    return Add.apply


CASES = [
    compare.Case("(4, 1) for (4,)", add((4, 1)), torch.add, lambda: {"x": torch.randn(5, 4), "b": torch.randn(4)}),
    compare.Case("(4,) for (1, 4)", add((4,)), torch.add, lambda: {"x": torch.randn(5, 4), "b": torch.randn(1, 4)}),
]
