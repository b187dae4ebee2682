"""Functions whose backward leaves out what forward does on the way."""

from __future__ import annotations

import torch
from torch.autograd import Function

ROWS = torch.tensor([0, 2, 2, 1, 3, 0])


class Clamped(Function):
    """Rows moved and clamped: the mask of the clamp is left out in both parts."""

    @staticmethod
    def forward(ctx, x, y):
        low = (2 * x + y).clamp(-0.5, 0.5)
        high = (x - 3 * y).relu()
        ctx.save_for_backward(low)
        return low.exp() + high

    @staticmethod
    def backward(ctx, g):
        (low,) = ctx.saved_tensors
        to_low = g * low.exp()
        return 2 * to_low + g, to_low - 3 * g


class Logits(Function):
    """The derivative of a step is left out; backward has nothing that it could be made of."""

    @staticmethod
    def setup_context(ctx, inputs, output):
        (x,) = inputs
        ctx.save_for_backward(x.detach().tanh().sin())

    @staticmethod
    def forward(x):
        angle = x.tanh().sin()
        return angle.cos().cumsum(1)

    @staticmethod
    def backward(ctx, g):
        (angle,) = ctx.saved_tensors
        return -angle.sin() * g.flip(1).cumsum(1).flip(1)


class OpaqueLogits(Logits):
    """The same; forward is not computed with operations that autograd knows."""

    @staticmethod
    def forward(x):
        return torch.from_numpy(x.detach().numpy().copy()).tanh().sin().cos().cumsum(1)


class Steps(Function):
    """Three steps; backward takes the first value for that of each step."""

    @staticmethod
    def forward(ctx, x, w):
        y = x
        for n in range(3):
            y = y + w[n] * y.sin()
        ctx.save_for_backward(x, w)
        return y

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        gw = torch.zeros_like(w)
        for n in reversed(range(3)):
            gw[n] = (g * x.sin()).sum()
            g = g + w[n] * g * x.cos()
        return g, gw


class Rows(Function):
    """Rows are taken by the indices, where they should be added at them."""

    @staticmethod
    def forward(ctx, x):
        ctx.count = len(x)
        return x[ROWS]

    @staticmethod
    def backward(ctx, g):
        return g[ROWS][: ctx.count]


class Rotation(Function):
    """Halves are turned; backward turns neighbours."""

    @staticmethod
    def forward(ctx, x, angle):
        cos, sin = angle.cos(), angle.sin()
        ctx.save_for_backward(cos, sin)
        a, b = x[:, :2], x[:, 2:]
        return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)

    @staticmethod
    def backward(ctx, g):
        cos, sin = ctx.saved_tensors
        a, b = g[:, 0::2], g[:, 1::2]
        return torch.stack((a * cos + b * sin, b * cos - a * sin), -1).flatten(-2), None


class Scaled(Function):
    """The first sum loses its dimension, so that the second one is over another dimension."""

    @staticmethod
    def forward(ctx, x, scale):
        ctx.save_for_backward(x, scale)
        return x * scale

    @staticmethod
    def backward(ctx, g):
        x, scale = ctx.saved_tensors
        return g * scale, summed(g * x, scale.shape)


def summed(gradient, shape):
    for dim, size in enumerate(shape):
        if size == 1:
            gradient = gradient.sum(dim)
    return gradient.reshape(shape)
