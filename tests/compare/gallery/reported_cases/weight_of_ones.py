"""A fresh affine layer (weight 1, bias 0) whose bias gradient sums x and not g. Expected: not "only at ties"."""

import torch
import torch.nn as nn
from torch.autograd import Function

import compare


class Affine(Function):
    @staticmethod
    def forward(ctx, x, w, b):
        ctx.save_for_backward(x, w)
        return x * w + b

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return g * w, (g * x).sum(0), x.sum(0)  # g.sum(0) is right for b (pytorch#2330)


class Mine(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6))
        self.bias = nn.Parameter(torch.zeros(6))

    def forward(self, x):
        return Affine.apply(x, self.weight, self.bias)


class Theirs(Mine):
    def forward(self, x):
        return x * self.weight + self.bias


CASES = [compare.Case.from_modules("affine", Mine(), Theirs(), lambda: torch.randn(4, 6))]
