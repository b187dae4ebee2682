"""Functions whose backward leaves out what forward does on the way."""

from __future__ import annotations

import torch
from torch.autograd import Function

ROWS = torch.tensor([0, 2, 2, 1, 3, 0])


class HalfClamped(Function):
    """Two columns are clamped, two others are not negative: backward leaves both masks out."""

    @staticmethod
    def forward(ctx, x):
        low = x[:, :2].clamp(-0.5, 0.5)
        high = x[:, 2:].relu()
        exp = torch.cat((low, high), 1).exp()
        ctx.save_for_backward(exp)
        return exp.cumsum(1)

    @staticmethod
    def backward(ctx, g):
        (exp,) = ctx.saved_tensors
        to_exp = g.flip(1).cumsum(1).flip(1)
        first = to_exp[:, :2] * exp[:, :2]
        second = to_exp[:, 2:] * exp[:, 2:]
        return torch.cat((first, second), 1)


class Sums(Function):
    """A derivative is left out; backward has nothing that it could be made of."""

    @staticmethod
    def setup_context(ctx, inputs, output):
        (x,) = inputs
        ctx.save_for_backward(torch.special.erf(x.detach()).cos())

    @staticmethod
    def forward(x):
        inner = torch.special.erf(x)
        return inner.sin().cumsum(1)

    @staticmethod
    def backward(ctx, g):
        (cos,) = ctx.saved_tensors
        return cos * g.flip(1).cumsum(1).flip(1)


class OpaqueSums(Sums):
    """The same; autograd cannot follow forward."""

    @staticmethod
    def forward(x):
        return torch.special.erf(torch.from_numpy(x.detach().numpy().copy())).sin().cumsum(1)


class Sines(Function):
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
