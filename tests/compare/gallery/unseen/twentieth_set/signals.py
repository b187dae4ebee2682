"""Signals: a filter of two taps, modulation by an angle."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right


def two_taps(x, coefficient):
    return torch.cat([x[:, :1], x[:, 1:] - coefficient * x[:, :-1]], 1)


class TwoTapsFunction(Function):
    @staticmethod
    def forward(ctx, x, coefficient):
        ctx.save_for_backward(x, coefficient)
        return two_taps(x, coefficient)

    @staticmethod
    def backward(ctx, g):
        x, coefficient = ctx.saved_tensors
        grad_x = torch.cat([g[:, :-1] - coefficient * g[:, 1:], g[:, -1:]], 1)
        return grad_x, -(g[:, 1:] * x[:, :-1]).sum().reshape(coefficient.shape)


class PreEmphasis(Function):
    """y[t] = x[t] - a x[t - 1] with a trained a; the first sample passes unchanged."""

    @staticmethod
    def forward(ctx, wave, a):
        ctx.save_for_backward(wave, a)
        y = wave.clone()
        for t in range(wave.shape[1] - 1, 0, -1):
            y[:, t] -= a * y[:, t - 1]
        return y

    @staticmethod
    def backward(ctx, grad_y):
        wave, a = ctx.saved_tensors
        grad_wave = grad_y.clone()
        for t in range(wave.shape[1] - 1, 0, -1):
            grad_wave[:, t - 1] -= a * grad_wave[:, t]
        grad_a = -(grad_y[:, 1:] * wave[:, :-1]).sum()
        return grad_wave, grad_a.view_as(a)


def modulated(x, phase):
    return x * torch.polar(torch.ones_like(phase), phase)


class ModulatedFunction(Function):
    @staticmethod
    def forward(ctx, x, phase):
        ctx.save_for_backward(x, phase)
        return modulated(x, phase)

    @staticmethod
    def backward(ctx, g):
        x, phase = ctx.saved_tensors
        grad_x = g * torch.polar(torch.ones_like(phase), -phase)
        return grad_x, (grad_x * x.conj()).imag


class PhaseShift(Function):
    """Rotate complex samples by real angles."""

    @staticmethod
    def forward(ctx, z, theta):
        rot = torch.complex(theta.cos(), theta.sin())
        out = z * rot
        ctx.save_for_backward(rot, out)
        return out

    @staticmethod
    def backward(ctx, grad_out):
        rot, out = ctx.saved_tensors
        grad_z = grad_out * rot.conj()
        grad_theta = (grad_out * out.conj()).real
        return grad_z, grad_theta


OPERATIONS = [
    Operation(
        "filter of two taps, its own results",
        TwoTapsFunction,
        PreEmphasis,
        two_taps,
        lambda: {"wave": torch.randn(2, 6), "a": 0.5 + 0.4 * torch.rand(1)},
        named="the loop runs from the end in place, so it takes gradients that it has changed already",
        kinds=("another operand", "wrong intermediate value", "missing term"),
        named_words=(r"grad_wave|grad_y", r"in.place|order|revers|already|loop"),
        located=(r"gradient of (wave|x)\b",),
    ),
    Operation(
        "modulation, real part for imaginary",
        ModulatedFunction,
        PhaseShift,
        modulated,
        lambda: {"x": torch.randn(3, 4, dtype=torch.complex64), "phase": torch.randn(3, 4)},
        named="the phase's gradient is the real part, where the imaginary part belongs",
        kinds=("another operand",),
        named_words=(r"\bimag", r"\breal\b"),
        located=(r"gradient of (phase|theta)",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
