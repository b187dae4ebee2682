"""Filters: a delay by a part of a sample, a causal convolution, a gain against noise, a modulated frequency."""

from __future__ import annotations

import math

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right


def delayed(x, delay):
    T = x.size(1)
    omega = 2 * math.pi * torch.arange(T // 2 + 1).to(x) / T
    return torch.fft.irfft(torch.fft.rfft(x) * torch.exp(-1j * omega * delay[:, None]), n=T)


class DelayFunction(Function):
    @staticmethod
    def forward(ctx, x, delay):
        ctx.save_for_backward(x, delay)
        return delayed(x, delay)

    @staticmethod
    def backward(ctx, g):
        x, delay = ctx.saved_tensors
        omega = 2 * math.pi * torch.arange(x.size(1) // 2 + 1).to(x) / x.size(1)
        slope = torch.fft.irfft(torch.fft.rfft(delayed(x, delay)) * (-1j * omega), n=x.size(1))
        return delayed(g, -delay), (g * slope).sum(1)


class FractionalDelay(Function):
    """Delays each row of x (B, T) by d (B,) samples; T is odd."""

    @staticmethod
    def forward(ctx, x, d):
        n = x.shape[-1]
        w = 2 * math.pi * torch.fft.rfftfreq(n, dtype=x.dtype, device=x.device)
        phase = torch.exp(-1j * w * d.unsqueeze(1))
        spectrum = torch.fft.rfft(x) * phase
        ctx.save_for_backward(w, phase, spectrum)
        ctx.n = n
        return torch.fft.irfft(spectrum, n=n)

    @staticmethod
    def backward(ctx, grad_y):
        w, phase, spectrum = ctx.saved_tensors
        grad_spectrum = torch.fft.rfft(grad_y)
        grad_x = torch.fft.irfft(grad_spectrum * phase, n=ctx.n)
        dy_dd = torch.fft.irfft(-1j * w * spectrum, n=ctx.n)
        return grad_x, (grad_y * dy_dd).sum(-1)


def causal(x, k):
    T = x.size(2)
    rows = [(x[..., : t + 1] * k[:, : t + 1].flip(1)).sum(2) for t in range(T)]
    return torch.stack(rows, 2)


class CausalFunction(Function):
    @staticmethod
    def forward(ctx, x, k):
        ctx.save_for_backward(x, k)
        return causal(x, k)

    @staticmethod
    def backward(ctx, g):
        x, k = ctx.saved_tensors
        to_x, to_k = torch.zeros_like(x), torch.zeros_like(k)
        for t in range(x.size(2)):
            to_x[..., : t + 1] += g[..., t : t + 1] * k[:, : t + 1].flip(1)
            to_k[:, : t + 1] += (g[..., t : t + 1] * x[..., : t + 1].flip(2)).sum(0)
        return to_x, to_k


class FFTConv(Function):
    """Long convolution: y[t] = sum over s <= t of k[s] x[t-s], x (B, C, T), k (C, T)."""

    @staticmethod
    def forward(ctx, x, k):
        T = x.shape[-1]
        x_f = torch.fft.rfft(x, n=2 * T)
        k_f = torch.fft.rfft(k, n=2 * T)
        ctx.save_for_backward(x, k)
        return torch.fft.irfft(x_f * k_f, n=2 * T)[..., :T]

    @staticmethod
    def backward(ctx, dy):
        x, k = ctx.saved_tensors
        T = x.shape[-1]
        dy_f = torch.fft.rfft(dy)
        dx = torch.fft.irfft(dy_f * torch.fft.rfft(k).conj(), n=T)
        dk = torch.fft.irfft(dy_f * torch.fft.rfft(x).conj(), n=T)
        return dx, dk.sum(dim=0)


def without_noise(x, noise):
    return x * x**2 / (x**2 + noise)


class WienerFunction(Function):
    @staticmethod
    def forward(ctx, x, noise):
        ctx.save_for_backward(x, noise)
        return without_noise(x, noise)

    @staticmethod
    def backward(ctx, g):
        x, noise = ctx.saved_tensors
        total = x * x + noise
        gain = x * x / total
        return g * gain * (1 + 2 * noise / total), (-g * x * gain / total).sum(0)


class WienerGain(Function):
    """Coefficients x (B, F) times the gain p / (p + noise) with the power p = x^2, noise (F,)."""

    @staticmethod
    def forward(ctx, x, noise):
        power = x.pow(2)
        gain = power / (power + noise)
        ctx.save_for_backward(x, noise, gain)
        return gain * x

    @staticmethod
    def backward(ctx, grad_output):
        x, noise, gain = ctx.saved_tensors
        grad_gain = grad_output * x
        grad_x = grad_output * gain
        grad_noise = -grad_gain * gain / (x.pow(2) + noise)
        return grad_x, grad_noise.sum(0)


def modulated(carrier, modulator, index, t):
    angle = 2 * math.pi * t
    return torch.sin(carrier[:, None] * angle + index[:, None] * torch.sin(modulator[:, None] * angle))


class ModulatedFunction(Function):
    @staticmethod
    def forward(ctx, carrier, modulator, index, t):
        ctx.save_for_backward(carrier[:, None], modulator[:, None], index[:, None], t)
        return modulated(carrier, modulator, index, t)

    @staticmethod
    def backward(ctx, g):
        carrier, modulator, index, t = ctx.saved_tensors
        angle = 2 * math.pi * t
        to_phase = g * torch.cos(carrier * angle + index * torch.sin(modulator * angle))
        to_inner = to_phase * index * torch.cos(modulator * angle)
        to_t = 2 * math.pi * (to_phase * carrier + to_inner * modulator).sum(0)
        to_index = (to_phase * torch.sin(modulator * angle)).sum(1)
        return (to_phase * angle).sum(1), (to_inner * angle).sum(1), to_index, to_t


class FMOscillator(Function):
    """sin(2 pi fc t + beta sin(2 pi fm t)) for B voices at the times t (T,)."""

    @staticmethod
    def forward(ctx, fc, fm, beta, t):
        wt = 2 * math.pi * t
        mod = torch.outer(fm, wt)
        theta = torch.outer(fc, wt) + beta[:, None] * torch.sin(mod)
        ctx.save_for_backward(fc, fm, beta, wt, mod, theta)
        return torch.sin(theta)

    @staticmethod
    def backward(ctx, grad):
        fc, fm, beta, wt, mod, theta = ctx.saved_tensors
        d_theta = grad * torch.cos(theta)
        d_fc = d_theta @ wt
        d_fm = (d_theta * torch.cos(mod)) @ wt
        d_beta = (d_theta * torch.sin(mod)).sum(1)
        d_wt = (d_theta * (fc[:, None] + (beta * fm)[:, None] * torch.cos(mod))).sum(0)
        return d_fc, d_fm, d_beta, 2 * math.pi * d_wt


OPERATIONS = [
    Operation(
        "delay by part of a sample, phase of the forward",
        DelayFunction,
        FractionalDelay,
        delayed,
        lambda: {"x": torch.randn(3, 7), "delay": torch.randn(3)},
        named="x: the phase is not conjugated, so the gradient is delayed instead of advanced",
        kinds=("conjugated",),
        named_words=(r"conj", r"-d(elay)?\b|negative delay|advance", r"sign of the (phase|delay|exponent|angle)"),
        located=(r"gradient of x\b",),
    ),
    Operation(
        "long causal convolution by FFT, backward without padding",
        CausalFunction,
        FFTConv,
        causal,
        lambda: {"x": torch.randn(2, 3, 6), "k": torch.randn(3, 6)},
        named="the transforms in backward are not padded to twice the length, so both gradients wrap around",
        kinds=("step left out", "wrong intermediate value", "missing term"),
        named_words=(r"\bpad", r"wrap|circular|cyclic", r"n ?= ?2|2 \* T|twice the length"),
        located=(r"gradient of (x|k)\b",),
    ),
    Operation(
        "gain against noise, gain as a constant",
        WienerFunction,
        WienerGain,
        without_noise,
        lambda: {"x": torch.randn(4, 5), "noise": 0.5 + torch.rand(5)},
        named="x: the gain depends on x too, and the term of its derivative is missing",
        kinds=("missing term", "step left out"),
        named_words=(r"missing|left out|lacks|not added", r"gain.*constant|constant.*gain|product rule"),
        located=(r"gradient of x\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "oscillator with a modulated frequency, depth of the modulation",
        ModulatedFunction,
        FMOscillator,
        modulated,
        lambda: {
            "carrier": torch.rand(3),
            "modulator": torch.rand(3),
            "index": torch.randn(3),
            "t": torch.linspace(0, 1, 6),
        },
        named="modulator: the factor beta (index) of the inner sine is missing",
        kinds=("step left out", "factor by element", "factor of one term"),
        named_words=(r"\b(index|beta)\b",),
        located=(r"gradient of modulator\b",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
