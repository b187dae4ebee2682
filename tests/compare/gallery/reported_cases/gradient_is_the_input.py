"""Right only where the incoming gradient equals the input. Expected: wrong in every dtype and layout."""

import torch
from torch.autograd import Function

import compare


class Sin(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return x * x.cos()  # g * x.cos() is right


CASES = [compare.Case("sin", Sin.apply, torch.sin, lambda: (torch.randn(100, dtype=torch.float64),))]
