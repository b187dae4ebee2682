"""Activations: logish, both halves of ReLU, tanh of an exponential, hard swish, a smooth ReLU of a learned width."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right


def logish(x):
    return x * torch.log1p(torch.sigmoid(x))


class LogishFunction(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.log1p(torch.sigmoid(x))

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return g * (torch.log1p(s) + x * s * (1 - s) / (1 + s))


def sigmoid_prime(z):
    s = torch.sigmoid(z)
    return s * (1 - s)


class Logish(Function):
    """Logish activation, x * ln(1 + sigmoid(x))."""

    @staticmethod
    def forward(ctx, inp):
        act = torch.sigmoid(inp)
        ctx.save_for_backward(inp, act)
        return inp * torch.log(1 + act)

    @staticmethod
    def backward(ctx, grad_output):
        inp, act = ctx.saved_tensors
        d_log = sigmoid_prime(act) / (1 + act)
        return grad_output * (torch.log(1 + act) + inp * d_log)


def both_halves(x):
    return torch.cat([F.relu(x), F.relu(-x)], 1)


class BothHalvesFunction(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.cat([x.clamp(min=0), (-x).clamp(min=0)], 1)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        positive, negative = g.split(x.shape[1], 1)
        return torch.where(x > 0, positive, torch.where(x < 0, -negative, torch.zeros_like(x)))


class CReLU(Function):
    """Concatenated ReLU (Shang et al. 2016)."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x > 0, x < 0)
        return torch.cat((x.clamp_min(0), -x.clamp_max(0)), dim=1)

    @staticmethod
    def backward(ctx, grad):
        pos, neg = ctx.saved_tensors
        grad_pos, grad_neg = torch.chunk(grad, 2, dim=1)
        return grad_pos * pos + grad_neg * neg


def tanh_of_exponential(x):
    return x * torch.tanh(torch.exp(x))


class TanhOfExponentialFunction(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.tanh(torch.exp(x))

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        e = torch.exp(x)
        t = torch.tanh(e)
        return g * (t + x * e * (1 - t * t))


class MemoryEfficientTanhExp(Function):
    """TanhExp that keeps one tensor for backward and recomputes the rest."""

    @staticmethod
    def forward(ctx, x):
        y = x.clone()
        ctx.save_for_backward(y)
        y.mul_(torch.exp(y).tanh_())
        return y

    @staticmethod
    def backward(ctx, grad_output):
        x = ctx.saved_tensors[0]
        ex = torch.exp(x)
        tanh_ex = torch.tanh(ex)
        return grad_output * (tanh_ex - x * ex * (tanh_ex.square() - 1))


class HardSwish(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.clamp(x + 3, 0, 6) / 6

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        slope = torch.where(x < 3, (2 * x + 3) / 6, torch.ones_like(x))
        return grad_output * slope


def smooth_rectifier(x, width):
    middle = (x + width).square() / (4 * width)
    return torch.where(x >= width, x, torch.where(x <= -width, torch.zeros_like(x), middle))


class SmoothRectifierFunction(Function):
    @staticmethod
    def forward(ctx, x, width):
        ctx.save_for_backward(x, width)
        return smooth_rectifier(x, width)

    @staticmethod
    def backward(ctx, g):
        x, width = ctx.saved_tensors
        inside = x.abs() < width
        grad_x = torch.where(inside, (x + width) / (2 * width), (x >= width).to(x))
        grad_width = torch.where(inside, (width - x) * (x + width) / (4 * width * width), torch.zeros_like(x))
        return g * grad_x, (g * grad_width).sum_to_size(width.shape)


class SmeLU(Function):
    """Smooth ReLU (Shamir et al. 2020) with a trainable half-width beta."""

    @staticmethod
    def forward(ctx, x, beta):
        quad = (x + beta) ** 2 / (4 * beta)
        out = torch.where(x.abs() < beta, quad, x.clamp(min=0))
        ctx.save_for_backward(x, beta)
        return out

    @staticmethod
    def backward(ctx, grad_out):
        x, beta = ctx.saved_tensors
        in_quad = x.abs() < beta
        lin = (x >= beta).to(grad_out.dtype)
        half = (x + beta) / (2 * beta)
        grad_x = grad_out * torch.where(in_quad, half, lin)
        grad_beta = (grad_out * half)[in_quad].sum()
        return grad_x, grad_beta.reshape(beta.shape)


OPERATIONS = [
    Operation(
        "logish, sigmoid of a sigmoid",
        LogishFunction,
        Logish,
        logish,
        lambda: {"x": 2 * torch.randn(4, 5)},
        named="the derivative of the sigmoid is taken at the sigmoid's value, where its input belongs",
        kinds=("another operand", "factor of one term"),
        named_words=(r"\bact\b", r"sigmoid_prime"),
        located=(r"gradient of x\b",),
    ),
    Operation(
        "both halves of ReLU, sign of the second",
        BothHalvesFunction,
        CReLU,
        both_halves,
        lambda: {"x": torch.randn(3, 4, 2)},
        named="the negative half's gradient has the wrong sign",
        kinds=("factor of one term", "flipped", "only for some values", "constant factor"),
        named_words=(r"sign\b|negated|opposite|-1\b", r"grad_neg|negative"),
        located=(r"gradient of x\b",),
    ),
    Operation(
        "tanh of an exponential, output saved as input",
        TanhOfExponentialFunction,
        MemoryEfficientTanhExp,
        tanh_of_exponential,
        lambda: {"x": torch.randn(3, 6)},
        named="the tensor saved as the input is the output, since forward multiplies it in place after saving it",
        kinds=("another operand", "wrong intermediate value"),
        named_words=(r"output|result of forward", r"in place|in-place", r"saved"),
        located=(r"gradient of x\b",),
    ),
    Operation(
        "smooth ReLU of a learned width, quotient's second term",
        SmoothRectifierFunction,
        SmeLU,
        smooth_rectifier,
        lambda: {"x": 2 * torch.randn(4, 6), "width": 0.5 + torch.rand(1)},
        named="the derivative by the width lacks the term of the divisor 4 width",
        kinds=("missing term", "step left out"),
        named_words=(r"missing term|term .*missing", r"divisor|quotient", r"\bquad\b"),
        located=(r"gradient of (width|beta)",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "hard swish, slope below -3",
            HardSwish.apply,
            F.hardswish,
            lambda: {"x": 4 * torch.randn(5, 6)},
            whole_numbers=False,
        ),
        named="below -3 the slope is not 0",
        kinds=("only for some values",),
        named_words=(r"-3\b", r"below|less than|x <"),
        located=(r"gradient of x\b",),
    ),
]
