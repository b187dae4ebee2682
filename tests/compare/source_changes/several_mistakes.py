"""Functions that take edits of two places, of a stored part, or of an equation to mend."""

from __future__ import annotations

import torch
from torch.autograd import Function


class Differences(Function):
    """Differences of neighbours in a row; backward stores one part a place too late."""

    @staticmethod
    def forward(ctx, x):
        return x[:, 1:] - x[:, :-1]

    @staticmethod
    def backward(ctx, g):
        gx = torch.zeros(g.shape[0], g.shape[1] + 1, dtype=g.dtype)
        gx[:, 1:] += g
        gx[:, 1:] -= g
        return gx


class Unpacked(Function):
    """The saved tensors are unpacked in another order than they were saved in."""

    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return x * y.exp()

    @staticmethod
    def backward(ctx, g):
        y, x = ctx.saved_tensors
        return g * y.exp(), g * x * y.exp()


class Bilinear(Function):
    """Two letters of an equation."""

    @staticmethod
    def forward(ctx, x, w, z):
        ctx.save_for_backward(x, w, z)
        return torch.einsum("bi,ij,bj->b", x, w, z)

    @staticmethod
    def backward(ctx, g):
        x, w, z = ctx.saved_tensors
        gw = torch.einsum("b,bi,bj->ji", g, x, z)
        return g[:, None] * (z @ w.T), gw, g[:, None] * (x @ w)


class Centred(Function):
    """Both means are over the wrong dimension."""

    @staticmethod
    def forward(ctx, x):
        centred = x - x.mean(1, keepdim=True)
        scale = centred.pow(2).sum(1, keepdim=True).rsqrt()
        y = centred * scale
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    def backward(ctx, g):
        y, scale = ctx.saved_tensors
        gx = scale * (g - y * (g * y).sum(0, keepdim=True))
        return gx - gx.sum(0, keepdim=True) / gx.shape[1]


class SumOfTwo(Function):
    """A sign in one term, and a factor in the other."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin() + x**3

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        first = g * x.sin()
        second = g * x**2
        return first + second


class ProductOfTwo(Function):
    """The exponent of one factor, and the sign of the whole."""

    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return y.exp() / x

    @staticmethod
    def backward(ctx, g):
        x, y = ctx.saved_tensors
        scaled = g * x
        slope = scaled * y.exp() / x**2
        return slope, g * y.exp() / x


class TwoSoftmaxes(Function):
    """Difference of two softmaxes; both subtract the mean of the difference."""

    @staticmethod
    def forward(ctx, x):
        p, q = x[0].softmax(1), x[1].softmax(1)
        ctx.save_for_backward(p, q)
        return p - q

    @staticmethod
    def backward(ctx, g):
        p, q = ctx.saved_tensors
        both = p - q
        mean = (g * both).sum(1, keepdim=True)
        return torch.stack([p * (g - mean), -q * (g - mean)])


class TwoGradients(Function):
    """A sign in one gradient, and half of a product rule in the other."""

    @staticmethod
    def forward(ctx, x, y):
        p = torch.sigmoid(x)
        ctx.save_for_backward(p, y)
        return (1 - p) ** 2 * p.log() + y**2

    @staticmethod
    def backward(ctx, g):
        p, y = ctx.saved_tensors
        slope = (1 - p) ** 2 / p
        return g * slope * p * (1 - p), -2 * g * y


class SharedStep(Function):
    """One mistake is in a step of both gradients, another in one of them alone."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return (a * b).sin() * 1.5

    @staticmethod
    def backward(ctx, g):
        a, b = ctx.saved_tensors
        step = g * (a * b).sin() * 1.5
        return step * b, step * b
