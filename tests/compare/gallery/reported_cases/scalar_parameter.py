"""A learnable scalar (0 dimensions) with a wrong gradient. Expected: a finding about s; the other case too."""

import torch
from torch.autograd import Function

import compare


class Scale(Function):
    @staticmethod
    def forward(ctx, x, s):
        ctx.save_for_backward(x, s)
        return x * s

    @staticmethod
    def backward(ctx, g):
        x, s = ctx.saved_tensors
        return g * s, (g * x.abs()).sum()


CASES = [
    compare.Case("fine", torch.sin, torch.sin, lambda: (torch.randn(3),)),
    compare.Case("scale", Scale.apply, torch.mul, lambda: {"x": torch.randn(4, 6), "s": torch.tensor(1.7)}),
]
