"""Wrong at the bounds of a clamp alone. Expected: "only where x is -1 or 1"; the second in every dtype."""

import torch
from torch.autograd import Function

import compare


class Clamp(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(-1, 1)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * ((x.abs() < 1) + 5 * (x.abs() == 1))


class FakeQuantise(Function):
    @staticmethod
    def forward(ctx, x):
        q = (x / 0.5).round()
        ctx.save_for_backward(q)
        return q.clamp(-4, 3) * 0.5

    @staticmethod
    def backward(ctx, g):
        (q,) = ctx.saved_tensors
        return g * ((q >= -4) & (q <= 3))


def rounded(x):
    return x + (x.round() - x).detach()


CASES = [
    compare.Case("clamp", Clamp.apply, lambda x: x.clamp(-1, 1), lambda: {"x": torch.randn(6, 8)}),
    compare.Case(
        "fake quantiser, closed",
        FakeQuantise.apply,
        lambda x: rounded(x / 0.5).clamp(-4, 3) * 0.5,
        lambda: {"x": 2 * torch.randn(6, 8)},
    ),
]
