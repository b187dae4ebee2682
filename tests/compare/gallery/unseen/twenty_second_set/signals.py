"""Signals: an all-pass filter, the power of single frequencies, a step of sound on a ring."""

from __future__ import annotations

import math

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

RATE = 8.0


def all_pass(x, coefficient):
    rows, before_x, before_y = [], torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0])
    for now in x.unbind(1):
        before_y = coefficient * (now - before_y) + before_x
        before_x = now
        rows.append(before_y)
    return torch.stack(rows, 1)


class AllPassFunction(Function):
    @staticmethod
    def forward(ctx, x, coefficient):
        y = all_pass(x, coefficient)
        ctx.save_for_backward(x, coefficient, y)
        return y

    @staticmethod
    def backward(ctx, g):
        x, coefficient, y = ctx.saved_tensors
        to_x, to_coefficient = torch.zeros_like(x), torch.zeros_like(coefficient)
        later = torch.zeros_like(x[:, 0])
        for t in range(x.size(1) - 1, -1, -1):
            to_y = g[:, t] - coefficient * later
            to_x[:, t] = coefficient * to_y + later
            before = y[:, t - 1] if t else torch.zeros_like(y[:, 0])
            to_coefficient += (to_y * (x[:, t] - before)).sum(0)
            later = to_y
        return to_x, to_coefficient


class FirstOrderAllpass(Function):
    """y[t] = c (x[t] - y[t-1]) + x[t-1] for x (B, T, C), with a coefficient c (C,) for each channel."""

    @staticmethod
    def forward(ctx, x, c):
        y = torch.zeros_like(x)
        y[:, 0] = c * x[:, 0]
        for t in range(1, x.size(1)):
            y[:, t] = c * (x[:, t] - y[:, t - 1]) + x[:, t - 1]
        ctx.save_for_backward(x, y, c)
        return y

    @staticmethod
    def backward(ctx, grad_y):
        x, y, c = ctx.saved_tensors
        adj = grad_y.clone()
        for t in range(x.size(1) - 2, -1, -1):
            adj[:, t] -= c * adj[:, t + 1]
        grad_x = c * adj
        grad_x[:, :-1] += adj[:, 1:]
        y_prev = torch.cat([torch.zeros_like(y[:, :1]), y[:, :-1]], dim=1)
        grad_c = (grad_y * (x - y_prev)).sum(dim=(0, 1))
        return grad_x, grad_c


def power(x, frequency):
    angle = 2 * math.pi / RATE * frequency[:, None] * torch.arange(x.size(1)).to(x)
    return (x @ angle.cos().T) ** 2 + (x @ angle.sin().T) ** 2


class PowerFunction(Function):
    @staticmethod
    def forward(ctx, x, frequency):
        ctx.save_for_backward(x, frequency)
        return power(x, frequency)

    @staticmethod
    def backward(ctx, g):
        x, frequency = ctx.saved_tensors
        per_step = 2 * math.pi / RATE * torch.arange(x.size(1)).to(x)
        cos, sin = (frequency[:, None] * per_step).cos(), (frequency[:, None] * per_step).sin()
        to_real, to_imaginary = 2 * g * (x @ cos.T), 2 * g * (x @ sin.T)
        to_angle = to_imaginary.T @ x * cos - to_real.T @ x * sin
        return to_real @ cos + to_imaginary @ sin, (to_angle * per_step).sum(1)


class Goertzel(Function):
    """Power of x (B, T) at frequencies f (K,) in Hz -> (B, K)."""

    @staticmethod
    def forward(ctx, x, f):
        n = torch.arange(x.shape[-1], dtype=x.dtype, device=x.device)
        w = 2 * math.pi * f / RATE
        cos, sin = torch.cos(torch.outer(n, w)), torch.sin(torch.outer(n, w))
        re, im = x @ cos, x @ sin
        ctx.save_for_backward(x, n, cos, sin, re, im)
        return re**2 + im**2

    @staticmethod
    def backward(ctx, grad_power):
        x, n, cos, sin, re, im = ctx.saved_tensors
        grad_re = 2 * re * grad_power
        grad_im = 2 * im * grad_power
        grad_x = grad_re @ cos.T + grad_im @ sin.T
        xn = x * n
        grad_w = (grad_im * (xn @ cos) - grad_re * (xn @ sin)).sum(0)
        return grad_x, grad_w * 2 * math.pi


def sound_step(pressure, velocity, stiffness):
    velocity = velocity - 0.5 * (pressure.roll(-1, 1) - pressure)
    return pressure - stiffness * (velocity - velocity.roll(1, 1)), velocity


class AcousticStep(Function):
    """One step of p and v on a staggered periodic grid (B, N); k (N,) is dt times the bulk modulus."""

    @staticmethod
    def forward(ctx, p, v, k):
        v_new = v - 0.5 * (torch.roll(p, -1, dims=1) - p)
        div = v_new - torch.roll(v_new, 1, dims=1)
        ctx.save_for_backward(k, div)
        return p - k * div, v_new

    @staticmethod
    def backward(ctx, grad_p_new, grad_v_new):
        k, div = ctx.saved_tensors
        grad_k = -(grad_p_new * div).sum(0)
        grad_div = -k * grad_p_new
        grad_v = grad_v_new + grad_div - torch.roll(grad_div, 1, dims=1)
        grad_p = grad_p_new + 0.5 * grad_v - 0.5 * torch.roll(grad_v, 1, dims=1)
        return grad_p, grad_v, grad_k


OPERATIONS = [
    Operation(
        "all-pass filter, gradient of the coefficient",
        AllPassFunction,
        FirstOrderAllpass,
        all_pass,
        lambda: {"x": torch.randn(2, 6, 3), "coefficient": torch.rand(3) * 0.8},
        named="coefficient: backward takes the incoming gradient, not that with the part of the later steps",
        kinds=("another operand", "missing term", "wrong sum"),
        named_words=(r"\badj\b", r"recur|later|missing|through", r"accumulat"),
        located=(r"gradient of (coefficient|c)\b",),
    ),
    Operation(
        "power of single frequencies, rate of the samples",
        PowerFunction,
        Goertzel,
        power,
        lambda: {"x": torch.randn(3, 6), "frequency": torch.rand(4) * 3 + 0.5},
        named="frequency: the angle is divided by the rate of the samples, and backward leaves that out",
        kinds=("constant factor", "step left out", "factor of one term"),
        named_words=(r"\bRATE\b", r"factor (of )?8|8 times|times 8|0\.125|1/8"),
        located=(r"gradient of (frequency|f)\b",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "sound on a ring, neighbour of a difference",
            AcousticStep.apply,
            sound_step,
            lambda: {"pressure": torch.randn(2, 6), "velocity": torch.randn(2, 6), "stiffness": torch.rand(6) + 0.3},
        ),
        named="the difference with the earlier neighbour goes back to the later one; backward shifts as forward does",
        kinds=("shifted", "permuted", "flipped", "wrong sum", "transposed"),
        named_words=(r"roll", r"shift", r"-1\b.*dims|direction|neighbou?r"),
        located=(r"gradient of (velocity|v)\b",),
    ),
]
