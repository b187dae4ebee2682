"""Tones: a meter of loudness, an echo, a tone whose frequency another one moves, hum taken out."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import WrongFunction

DELAY = 2


def loudness_meter(signal, rise, fall):
    level, levels = torch.zeros_like(signal[0]), []
    for each in signal.abs():
        speed = torch.where(each > level, rise, fall)
        level = level + speed * (each - level)
        levels.append(level)
    return torch.stack(levels)


class EnvelopeFollower(Function):
    """Peak meter with an attack and a release coefficient for each channel."""

    @staticmethod
    def forward(ctx, x, attack, release):
        env = torch.zeros(len(x) + 1, *x.shape[1:], dtype=x.dtype, device=x.device)
        for t in range(len(x)):
            rect = x[t].abs()
            coeff = torch.where(rect > env[t], attack, release)
            env[t + 1] = env[t] + coeff * (rect - env[t])
        ctx.save_for_backward(x, attack, release, env)
        return env[1:].clone()

    @staticmethod
    def backward(ctx, grad_env):
        x, attack, release, env = ctx.saved_tensors
        grad_x = torch.zeros_like(x)
        grad_attack, grad_release = torch.zeros_like(attack), torch.zeros_like(release)
        carry = torch.zeros_like(attack)
        for t in range(len(x) - 1, -1, -1):
            carry = carry + grad_env[t]
            rect = x[t].abs()
            rising = rect > env[t]
            coeff = torch.where(rising, attack, release)
            step = carry * (rect - env[t])
            grad_attack += step * rising
            grad_release += step * ~rising
            grad_x[t] = carry * coeff
            carry = carry * (1 - coeff)
        return grad_x, grad_attack, grad_release


def echo(signal, feedback, mix):
    out = list(signal[:DELAY])
    for t in range(DELAY, len(signal)):
        out.append(signal[t] + feedback * out[t - DELAY])
    return (1 - mix) * signal + mix * torch.stack(out)


class FeedbackComb(Function):
    @staticmethod
    def forward(ctx, x, g, mix):
        y = x.clone()
        for t in range(DELAY, x.shape[0]):
            y[t] += g * y[t - DELAY]
        ctx.save_for_backward(x, y, g, mix)
        return torch.lerp(x, y, mix)

    @staticmethod
    def backward(ctx, grad_out):
        x, y, g, mix = ctx.saved_tensors
        grad_mix = (grad_out * (y - x)).sum()
        grad_y = mix * grad_out
        grad_g = torch.zeros_like(g)
        for t in range(x.shape[0] - 1, DELAY - 1, -1):
            grad_y[t - DELAY] += g * grad_y[t]
            grad_g += grad_y[t] * y[t - DELAY]
        return grad_y, grad_g, grad_mix


def moved_tone(carrier, modulator, depth):
    place = torch.arange(6).to(carrier)
    phase = carrier[:, None] * place
    return (phase + depth[:, None] * (modulator[:, None] * place).sin()).sin()


class FMOscillator(Function):
    """Frequencies in radians per sample; six samples."""

    @staticmethod
    def forward(ctx, w_c, w_m, index):
        n = torch.arange(6, device=w_c.device, dtype=w_c.dtype)
        mod = torch.sin(torch.outer(w_m, n))
        phase = torch.outer(w_c, n) + index.unsqueeze(1) * mod
        ctx.save_for_backward(phase, mod, w_m, index, n)
        return phase.sin()

    @staticmethod
    def backward(ctx, grad):
        phase, mod, w_m, index, n = ctx.saved_tensors
        grad_phase = grad * phase.cos()
        grad_wc = grad_phase @ n
        grad_index = (grad_phase * mod).sum(dim=1)
        grad_mod = grad_phase * index.unsqueeze(1)
        grad_wm = (grad_mod * torch.cos(torch.outer(w_m, n))).sum(dim=1)
        return grad_wc, grad_wm, grad_index


def without_hum(signal, frequency):
    place = torch.arange(signal.shape[-1]).to(signal)
    c, s = (frequency * place).cos(), (frequency * place).sin()
    return signal - (signal @ c)[:, None] * c / (c @ c) - (signal @ s)[:, None] * s / (s @ s)


class HumRemoval(Function):
    """Subtracts the projections on a cosine and on a sine of the mains frequency."""

    @staticmethod
    def forward(ctx, x, w):
        n = torch.arange(x.shape[-1], device=x.device, dtype=x.dtype)
        waves = torch.stack([torch.cos(w * n), torch.sin(w * n)])
        energy = waves.square().sum(dim=1)
        amp = x @ waves.t() / energy
        ctx.save_for_backward(x, waves, energy, amp, n)
        return x - amp @ waves

    @staticmethod
    def backward(ctx, grad_y):
        x, waves, energy, amp, n = ctx.saved_tensors
        grad_amp = -(grad_y @ waves.t())
        grad_x = grad_y + grad_amp / energy @ waves
        grad_waves = -(amp.t() @ grad_y) + (grad_amp / energy).t() @ x
        slope = torch.stack([-n * waves[1], n * waves[0]])
        grad_w = (grad_waves * slope).sum()
        return grad_x, grad_w


WRONG = [
    WrongFunction(
        Case(
            "meter of loudness, sign of the signal",
            EnvelopeFollower.apply,
            loudness_meter,
            lambda: {"signal": torch.randn(6, 3), "rise": 0.4 + 0.5 * torch.rand(3), "fall": 0.3 * torch.rand(3)},
            whole_numbers=False,
        ),
        named="signal: the derivative of its absolute value, the sign, is missing",
        kinds=("step left out", "factor by element", "only for some values", "missing term", "another operand"),
        named_words=(r"\babs|sign",),
        located=(r"gradient of (signal|x)\b",),
    ),
    WrongFunction(
        Case(
            "echo, signal beside it",
            FeedbackComb.apply,
            echo,
            lambda: {"signal": torch.randn(7), "feedback": torch.rand(()), "mix": 0.2 + 0.5 * torch.rand(())},
        ),
        named="signal: the part that goes straight to the output, times 1 - mix, is missing",
        kinds=("missing term", "step left out"),
        named_words=(r"missing", r"lerp", r"1 - mix"),
        located=(r"gradient of (signal|x)\b",),
    ),
    WrongFunction(
        Case(
            "tone that another moves, sample's number left out",
            FMOscillator.apply,
            moved_tone,
            lambda: {"carrier": torch.rand(4), "modulator": torch.rand(4), "depth": torch.rand(4) + 0.5},
        ),
        named="modulator: the factor of the samples' numbers, the inner derivative of the sine, is missing",
        kinds=("step left out", "factor by element", "another operand", "missing term"),
        named_words=(r"\bn\b|arange|place|outer", r"inner"),
        located=(r"gradient of (modulator|w_m)\b",),
    ),
    WrongFunction(
        Case(
            "hum taken out, energy of the waves as a constant",
            HumRemoval.apply,
            without_hum,
            lambda: {"signal": torch.randn(3, 7), "frequency": 0.6 + torch.rand(())},
            whole_numbers=False,
        ),
        named="frequency: the part through the energies of the waves, by which is divided, is missing",
        kinds=("missing term", "step left out"),
        named_words=(r"missing", r"energy|divisor|denominator|divi|square", r"constant"),
        located=(r"gradient of (frequency|w)\b",),
    ),
]

RIGHT: list[Case] = []
