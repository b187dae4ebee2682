"""A fake quantiser whose gradient is 20 % too large everywhere. Expected: constant factor 1.2."""

import torch
from torch.autograd import Function

import compare


class FakeQuantise(Function):
    @staticmethod
    def forward(ctx, x):
        q = (x / 0.5).round()
        ctx.save_for_backward(q)
        return q.clamp(-4, 3) * 0.5

    @staticmethod
    def backward(ctx, g):
        (q,) = ctx.saved_tensors
        return 1.2 * g * ((q > -4) & (q < 3))


def rounded(x):
    return x + (x.round() - x).detach()


CASES = [
    compare.Case(
        "fake quantiser",
        FakeQuantise.apply,
        lambda x: rounded(x / 0.5).clamp(-4, 3) * 0.5,
        lambda: {"x": 2 * torch.randn(6, 8)},
    )
]
