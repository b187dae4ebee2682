"""1.01 times the right value, and so is its gradient. Expected in float32 alone: 1.01 times, once, as in float64."""

import torch
from torch.autograd import Function

from compare import Case


class Sq(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, g):
        return 2 * g * ctx.saved_tensors[0]


def square(x):
    return x * x


def draw():
    return (torch.randn(3, 4),)


CASES = [Case("scaled", lambda x: Sq.apply(x) * 1.01, square, draw)]
