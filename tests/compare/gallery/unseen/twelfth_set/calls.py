"""Mistakes in what a Function asks for, converts, counts or conjugates."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right


def gated_dense(x, weight, bias):
    return torch.sigmoid(x @ weight.T + bias) * x.sum(1, keepdim=True)


class GatedDenseFunction(Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight, bias)
        return gated_dense(x, weight, bias)

    @staticmethod
    def backward(ctx, g):
        x, weight, bias = ctx.saved_tensors
        s = torch.sigmoid(x @ weight.T + bias)
        grad_z = g * x.sum(1, keepdim=True) * s * (1 - s)
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = grad_z @ weight + (g * s).sum(1, keepdim=True)
        if ctx.needs_input_grad[1]:
            grad_weight = grad_z.T @ x
        if ctx.needs_input_grad[2]:
            grad_bias = grad_z.sum(0)
        return grad_x, grad_weight, grad_bias


class GatedDense(Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        s = torch.sigmoid(torch.addmm(bias, x, weight.t()))
        total = x.sum(dim=1, keepdim=True)
        ctx.save_for_backward(x, weight, s, total)
        return s * total

    @staticmethod
    def backward(ctx, grad_output):
        x, weight, s, total = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad_output * s).sum(dim=1, keepdim=True).expand_as(x)
        if any(ctx.needs_input_grad[1:]):
            delta = grad_output * total * s * (1 - s)
            grad_weight = delta.t() @ x
            grad_bias = delta.sum(dim=0)
            if ctx.needs_input_grad[0]:
                grad_x = grad_x + delta @ weight
        return grad_x, grad_weight, grad_bias


def hypotenuse(x, y):
    return torch.hypot(x, y)


class HypotenuseFunction(Function):
    @staticmethod
    def forward(ctx, x, y):
        length = torch.hypot(x, y)
        ctx.save_for_backward(x, y, length)
        return length

    @staticmethod
    def backward(ctx, g):
        x, y, length = ctx.saved_tensors
        return g * (x / length), g * (y / length)


class Hypot(Function):
    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return torch.hypot(a, b)

    @staticmethod
    def backward(ctx, grad_out):
        a, b = ctx.saved_tensors
        inverse = torch.rsqrt(a * a + b * b)
        return grad_out * a * inverse, grad_out * b * inverse


def mean_above(x, level):
    above = x > level
    return (x * above).sum(1) / above.sum(1) - level


class MeanAboveFunction(Function):
    @staticmethod
    def forward(ctx, x, level):
        ctx.save_for_backward(x, level)
        return mean_above(x, level)

    @staticmethod
    def backward(ctx, g):
        x, level = ctx.saved_tensors
        above = x > level
        return (g / above.sum(1))[:, None] * above, -g.sum()


class MeanAbove(Function):
    @staticmethod
    def forward(ctx, x, level):
        mask = (x > level).to(torch.uint8)
        count = mask.sum(dim=1)
        out = (x * mask).sum(dim=1) / count - level
        ctx.save_for_backward(mask)
        return out

    @staticmethod
    def backward(ctx, grad):
        (mask,) = ctx.saved_tensors
        share = mask / mask.sum(dim=1, keepdim=True, dtype=mask.dtype)
        return grad.unsqueeze(1) * share.to(grad.dtype), -grad.sum()


def beam_power(weights, signal):
    return (weights.conj() @ signal).abs() ** 2


def beam_inputs():
    return {
        "weights": torch.randn(3, 4, dtype=torch.complex64),
        "signal": torch.randn(4, 5, dtype=torch.complex64),
    }


class BeamPowerFunction(Function):
    @staticmethod
    def forward(ctx, weights, signal):
        ctx.save_for_backward(weights, signal)
        return beam_power(weights, signal)

    @staticmethod
    def backward(ctx, g):
        weights, signal = ctx.saved_tensors
        grad_beam = 2 * g * (weights.conj() @ signal)
        return (grad_beam @ signal.mH).conj(), weights.T @ grad_beam


class BeamPower(Function):
    @staticmethod
    def forward(ctx, w, x):
        y = torch.matmul(w.conj(), x)
        ctx.save_for_backward(w, x, y)
        return y.real.square() + y.imag.square()

    @staticmethod
    def backward(ctx, grad_power):
        w, x, y = ctx.saved_tensors
        grad_y = 2 * grad_power * y
        grad_w = torch.matmul(grad_y.conj(), x.t())
        grad_x = torch.matmul(w.mH, grad_y)
        return grad_w, grad_x


OPERATIONS = [
    Operation(
        "dense gate, gradient of x inside of the weight's",
        GatedDenseFunction,
        GatedDense,
        gated_dense,
        lambda: {"x": torch.randn(5, 3), "weight": torch.randn(4, 3), "bias": torch.randn(4)},
        named="x's gradient through the gate is computed only if weight or bias requires a gradient too",
        kinds=("depends on which inputs require a gradient",),
        named_words=(r"requires? a gradient|requires_grad|needs_input_grad|require gradients",),
        located=(r"gradient of x",),
    ),
    Operation(
        "hypotenuse, squares in float16",
        HypotenuseFunction,
        Hypot,
        hypotenuse,
        lambda: {"x": torch.randn(5, 4) * 400, "y": torch.randn(5, 4) * 400},
        named="the squares overflow in float16, and the gradient is 0 there",
        kinds=("only in one dtype", "zero", "only for some values"),
        named_words=(r"float16|half", r"overflow|infinit"),
        located=(r"gradient of (x|y)", r"float16"),
        options={"whole_numbers": False},
    ),
    Operation(
        "mean above a level, count of 8 bits",
        MeanAboveFunction,
        MeanAbove,
        mean_above,
        lambda: {"x": torch.rand(2, 300) + 1, "level": torch.rand(()) / 4 + 0.25},
        named="backward counts in 8 bits, so 300 elements are 44: the gradient is too large",
        kinds=("constant factor", "factor by element", "another operand"),
        named_words=(r"6\.8|300|\b44\b", r"\btimes\b|factor", r"count|divi[ds]"),
        located=(r"gradient of x",),
    ),
    Operation(
        "power of beams, transposed with a conjugate",
        BeamPowerFunction,
        BeamPower,
        beam_power,
        beam_inputs,
        named="signal: the weights are conjugated where forward has conjugated them already",
        kinds=("conjugated",),
        named_words=(r"conj",),
        located=(r"gradient of (signal|x)",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
