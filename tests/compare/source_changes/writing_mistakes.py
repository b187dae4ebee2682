"""Functions that write where they must not: into what is kept, or over what was added at the same index."""

from __future__ import annotations

import torch
from torch.autograd import Function

LABELS = torch.tensor([2, 0, 2, 1])


class Powers(Function):
    """The powers of x up to the third; each is kept in the same tensor."""

    @staticmethod
    def forward(ctx, x):
        power, powers = torch.ones_like(x), []
        for _ in range(3):
            powers.append(power)
            power *= x
        ctx.save_for_backward(*powers)
        return power.clone()

    @staticmethod
    def backward(ctx, g):
        return g * 3 * ctx.saved_tensors[2]


class ShiftedSine(Function):
    """The sine of a sum, which is saved, and then replaced by its sine in place."""

    @staticmethod
    def forward(ctx, x):
        y = x + 0.5
        ctx.save_for_backward(y)
        return y.sin_()

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0].cos()


class TakenColumns(Function):
    """Columns by labels, of which one occurs twice."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x[:, LABELS] ** 2

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        gx = torch.zeros_like(x)
        gx[:, LABELS] -= -2 * g * x[:, LABELS]
        return gx
