"""A gradient that is infinite where native's is finite. Expected: a report that says so, no traceback."""

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
        return 2 * g * ctx.saved_tensors[0] / 0


def square(x):
    return x * x


def draw():
    return (torch.randn(3, 4),)


CASES = [Case("infgrad", Sq.apply, square, draw)]
