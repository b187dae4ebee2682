"""Functions with one mistake in the source, each of another sort."""

from __future__ import annotations

import math

import torch
from torch.autograd import Function

BETA = 1.7


class Swish(Function):
    """x times the logistic function of x; the last factor is forgotten."""

    @staticmethod
    def forward(ctx, x):
        s = torch.sigmoid(x)
        ctx.save_for_backward(x, s)
        return x * s

    @staticmethod
    def backward(ctx, g):
        x, s = ctx.saved_tensors  # noqa: RUF059
        return g * (s + s * (1 - s))


class Tanh(Function):
    """The derivative has the argument in place of the result."""

    @staticmethod
    def forward(ctx, x):
        y = torch.tanh(x)
        ctx.save_for_backward(x, y)
        return y

    @staticmethod
    def backward(ctx, g):
        x, y = ctx.saved_tensors  # noqa: RUF059
        return g * (1 - x**2)


class SavesTheArgument(Function):
    """Forward saves x where backward needs the result."""

    @staticmethod
    def forward(ctx, x):
        y = x.exp()
        ctx.save_for_backward(x)
        return y

    @staticmethod
    def backward(ctx, g):
        (y,) = ctx.saved_tensors
        return g * y


class Difference(Function):
    """The sign of the second gradient."""

    @staticmethod
    def forward(ctx, a, b):
        return a - b

    @staticmethod
    def backward(ctx, g):
        return g.clone(), g.clone()


class Transposed(Function):
    """A matrix product without its transposition."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x @ w

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return g @ w, x.t() @ g


class Clamp(Function):
    """A comparison in the other direction."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(min=0.25)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * (x < 0.25)


class Exchanged(Function):
    """The gradients are returned in the other order."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return a * b

    @staticmethod
    def backward(ctx, g):
        a, b = ctx.saved_tensors
        return g * a, g * b


class RunningSum(Function):
    """The carry of a loop is assigned, not accumulated."""

    @staticmethod
    def forward(ctx, x):
        return x.cumsum(0)

    @staticmethod
    def backward(ctx, g):
        grad, carry = torch.zeros_like(g), torch.zeros_like(g[0])
        for t in reversed(range(len(g))):
            carry = g[t]
            grad[t] = carry
        return grad


class ShortLoop(Function):
    """The loop ends one step early."""

    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, g):
        grad = torch.zeros_like(g)
        for t in range(len(g) - 1):
            grad[t] = 2 * g[t]
        return grad


class Power(Function):
    """A wrong exponent."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * g * x**3


class Scaled(Function):
    """A named constant is forgotten."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (BETA * x).sin()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * (BETA * x).cos()


class Root(Function):
    """The square root of a size is forgotten."""

    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return x * y / math.sqrt(x.shape[1])

    @staticmethod
    def backward(ctx, g):
        x, y = ctx.saved_tensors
        return g * y / math.sqrt(x.shape[1]), g * x


class Divided(Function):
    """The incoming gradient is ignored, and both gradients have the same divisor."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return (a.square() + b.square()).sum() / 2 / len(a)

    @staticmethod
    def backward(ctx, g):
        a, b = ctx.saved_tensors
        count = len(a)
        return a / count, b / count


class Masked(Function):
    """Between two bounds alone the gradient passes."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(-0.5, 0.75)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * (x < 0.75)


class ForgetsWhatCtxKeeps(Function):
    """The factor inside of the logistic function is forgotten; ctx has it."""

    @staticmethod
    def forward(ctx, x, beta):
        ctx.save_for_backward(x)
        ctx.beta = beta
        return torch.log1p((beta * x).exp()) / beta

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * torch.sigmoid(x), None


class Permuted(Function):
    """The permutation in place of its inverse."""

    @staticmethod
    def forward(ctx, x, index):
        ctx.save_for_backward(index)
        return x[:, index]

    @staticmethod
    def backward(ctx, g):
        (index,) = ctx.saved_tensors
        return g[:, index], None


def gaussian_slope(x):
    """A function that backward calls, and that has the mistake."""
    return -x * torch.exp(-x * x)


class Gaussian(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.exp(-x * x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * gaussian_slope(x)


class TwoMistakes(Function):
    """sin(a) b: sign and function are wrong in the gradient of a."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return a.sin() * b

    @staticmethod
    def backward(ctx, g):
        a, b = ctx.saved_tensors
        return g * b.exp() * a.tanh(), g * a.sin()


class OneInEach(Function):
    """sin(a) b: the derivative of the sine, and the factor sin(a)."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return a.sin() * b

    @staticmethod
    def backward(ctx, g):
        a, b = ctx.saved_tensors
        return -g * b * a.cos(), g * a


WEIGHTS_OF_THE_DIFFERENCE = torch.arange(20.0).view(5, 4) + 1


class SameTextTwice(Function):
    """The second of two equal expressions in a line has the wrong sign."""

    @staticmethod
    def forward(ctx, a, b):
        return (a - b) * WEIGHTS_OF_THE_DIFFERENCE.to(a.dtype)

    @staticmethod
    def backward(ctx, g):
        return g * WEIGHTS_OF_THE_DIFFERENCE.to(g.dtype), g * WEIGHTS_OF_THE_DIFFERENCE.to(g.dtype)


def turn(x, steps=1, *, reverse=False):
    return x.roll(steps, 1).flip(0) if reverse else x.roll(steps, 1)


class TurnsOn(Function):
    """Backward turns as forward does; it should turn back."""

    @staticmethod
    def forward(ctx, x):
        return turn(x)

    @staticmethod
    def backward(ctx, g):
        return turn(g)


class TurnsInOrder(Function):
    """Forward reverses the rows, and backward does not."""

    @staticmethod
    def forward(ctx, x):
        return turn(x, 2, reverse=True)

    @staticmethod
    def backward(ctx, g):
        return turn(g, -2)


class InAnInnerFunction(Function):
    """The inner function forgets a factor that only it has a name for."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.tanh(x)

    @staticmethod
    def backward(ctx, g):
        (saved,) = ctx.saved_tensors

        def derivative(x):
            y = torch.tanh(x)
            return y + (1 - y * y)

        return g * derivative(saved)


class KeepsANumber(Function):
    """Forward divides by what ctx has under another name than forward."""

    @staticmethod
    def forward(ctx, x, p):
        ctx.p, ctx.mask = p, x > 0
        return torch.where(ctx.mask, x / (1 - p * p), torch.zeros_like(x))

    @staticmethod
    def backward(ctx, g):
        return g * ctx.mask, None
