"""Functions that write where they must not: into what is kept, or over what was added at the same index."""

from __future__ import annotations

import torch
from torch.autograd import Function

BOXES = ((0, 3, 1, 3), (1, 4, 0, 3))  # rows from and to, columns from and to
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


class LargestInBoxes(Function):
    """The place in a box is split by the width of the whole image."""

    @staticmethod
    def forward(ctx, x):
        width, places = x.shape[1], []
        for top, low, left, right in BOXES:
            place = x[top:low, left:right].argmax()
            places.append((top + place // width) * width + left + place % width)
        ctx.places, ctx.shape = torch.stack(places), x.shape
        return x.flatten()[ctx.places]

    @staticmethod
    def backward(ctx, g):
        return torch.zeros(ctx.shape).to(g).flatten().index_add(0, ctx.places, g).view(ctx.shape)
