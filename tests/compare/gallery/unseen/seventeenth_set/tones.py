"""Tones: companding with a learned curve, a bank of oscillators, ratios of a sound and its error."""

from __future__ import annotations

import math

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right


def companded(x, mu):
    return x.sign() * torch.log1p(mu * x.abs()) / torch.log1p(mu)


class CompandedFunction(Function):
    @staticmethod
    def forward(ctx, x, mu):
        ctx.save_for_backward(x, mu)
        return companded(x, mu)

    @staticmethod
    def backward(ctx, g):
        x, mu = ctx.saved_tensors
        size, scale = x.abs(), torch.log1p(mu)
        inner = 1 / ((1 + mu * size) * scale)
        curve = torch.log1p(mu * size) / scale
        to_mu = g * x.sign() * (size * inner - curve / (scale * (1 + mu)))
        return g * mu * inner * x.sign().abs(), to_mu.sum(0)


class MuLawEncode(Function):
    @staticmethod
    def forward(ctx, x, mu):
        ctx.save_for_backward(x, mu)
        return torch.sign(x) * torch.log(1 + mu * torch.abs(x)) / torch.log(1 + mu)

    @staticmethod
    def backward(ctx, grad_output):
        x, mu = ctx.saved_tensors
        mag = torch.abs(x)
        denom = (1 + mu * mag) * torch.log(1 + mu)
        grad_x = grad_mu = None
        if ctx.needs_input_grad[0]:
            grad_x = grad_output * mu / denom
        if ctx.needs_input_grad[1]:
            grad_mu = (grad_output * torch.sign(x) * mag / denom).sum(dim=0)
        return grad_x, grad_mu


def oscillators(amplitude, frequency):
    return (amplitude * torch.sin(frequency.cumsum(0))).sum(1)


class OscillatorsFunction(Function):
    @staticmethod
    def forward(ctx, amplitude, frequency):
        ctx.save_for_backward(amplitude, frequency)
        return oscillators(amplitude, frequency)

    @staticmethod
    def backward(ctx, g):
        amplitude, frequency = ctx.saved_tensors
        phase = frequency.cumsum(0)
        to_phase = g[:, None] * amplitude * torch.cos(phase)
        return g[:, None] * torch.sin(phase), to_phase.flip(0).cumsum(0).flip(0)


class HarmonicSynth(Function):
    """Sum of sinusoids whose phases are running sums; recomputes the phases to save memory."""

    @staticmethod
    def forward(ctx, amps, omega):
        ctx.save_for_backward(amps, omega)
        phases = torch.cumsum(omega, dim=0)
        return torch.einsum("tk,tk->t", amps, phases.sin())

    @staticmethod
    def backward(ctx, grad_audio):
        amps, omega = ctx.saved_tensors
        phases = torch.cumsum(omega, dim=-1)
        grad_audio = grad_audio.unsqueeze(-1)
        grad_amps = grad_audio * phases.sin()
        grad_phases = grad_audio * amps * phases.cos()
        total = grad_phases.sum(dim=0, keepdim=True)
        grad_omega = total - torch.cumsum(grad_phases, dim=0) + grad_phases
        return grad_amps, grad_omega


def distortion_ratio(estimate, reference):
    scale = (estimate * reference).sum(1, keepdim=True) / reference.square().sum(1, keepdim=True)
    target = scale * reference
    return 10 * torch.log10(target.square().sum(1) / (estimate - target).square().sum(1))


class DistortionRatioFunction(Function):
    @staticmethod
    def forward(ctx, estimate, reference):
        ctx.save_for_backward(estimate, reference)
        return distortion_ratio(estimate, reference)

    @staticmethod
    def backward(ctx, g):
        estimate, reference = ctx.saved_tensors
        scale = (estimate * reference).sum(1, keepdim=True) / reference.square().sum(1, keepdim=True)
        target = scale * reference
        noise = estimate - target
        t, n = target.square().sum(1, keepdim=True), noise.square().sum(1, keepdim=True)
        g = 20 / math.log(10) * g[:, None]
        return g * (target / t - noise / n), g * (1 / t + 1 / n) * scale * noise


class SISDR(Function):
    """Scale-invariant signal-to-distortion ratio in dB."""

    @staticmethod
    def forward(ctx, est, ref):
        alpha = (est * ref).sum(-1, keepdim=True) / (ref * ref).sum(-1, keepdim=True)
        target = alpha * ref
        noise = est - target
        pt = (target**2).sum(-1, keepdim=True)
        pn = (noise**2).sum(-1, keepdim=True)
        ctx.save_for_backward(alpha, target, noise, pt, pn)
        return 10 * torch.log10(pt / pn).squeeze(-1)

    @staticmethod
    def backward(ctx, grad_db):
        alpha, target, noise, pt, pn = ctx.saved_tensors
        c = 10 / math.log(10) * grad_db.unsqueeze(-1)
        grad_target = c * 2 * target / pt
        grad_noise = -c * 2 * noise / pn
        grad_est = grad_target + grad_noise
        grad_ref = alpha * (grad_target - grad_noise)
        return grad_est, grad_ref


def spectral_convergence(s, t):
    return (s - t).norm(dim=1) / t.norm(dim=1)


class SpectralConvergence(Function):
    """||s - t|| / ||t|| of each example; the gradients are prepared in forward, which has all it needs."""

    @staticmethod
    def forward(ctx, s, t):
        diff = s - t
        num = diff.norm(dim=1, keepdim=True)
        den = t.norm(dim=1, keepdim=True)
        grad_s = diff / (num * den)
        grad_t = -grad_s - num * t / den**3
        ctx.save_for_backward(grad_s, grad_t)
        return (num / den).squeeze(1)

    @staticmethod
    def backward(ctx, grad_output):
        grad_s, grad_t = ctx.saved_tensors
        scale = grad_output.flatten()[0]
        return grad_s * scale, grad_t * scale


OPERATIONS = [
    Operation(
        "companding, the curve's end",
        CompandedFunction,
        MuLawEncode,
        companded,
        lambda: {"x": torch.randn(6, 3), "mu": 1 + 5 * torch.rand(3)},
        named="mu: its part through the divisor, the logarithm of 1 + mu, is missing",
        kinds=("missing term", "step left out"),
        named_words=(r"missing", r"log1p|torch\.log|divisor|denom", r"constant"),
        located=(r"gradient of mu\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "bank of oscillators, phases computed again",
        OscillatorsFunction,
        HarmonicSynth,
        oscillators,
        lambda: {"amplitude": torch.randn(6, 3), "frequency": torch.rand(6, 3)},
        named="backward sums the frequencies over the oscillators, where forward sums them over time",
        kinds=("another operand", "wrong sum", "step left out"),
        named_words=(r"cumsum", r"dim", r"phases"),
        located=(r"gradient of (amplitude|amps)\b", r"gradient of (frequency|omega)\b"),
    ),
    Operation(
        "ratio of sound and distortion, scale as a constant",
        DistortionRatioFunction,
        SISDR,
        distortion_ratio,
        lambda: {"estimate": torch.randn(4, 6), "reference": torch.randn(4, 6)},
        named="reference: its part through the scale of the target is missing, as if that were a constant",
        kinds=("missing term", "step left out"),
        named_words=(r"missing", r"constant", r"alpha|scale"),
        located=(r"gradient of (reference|ref)\b",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "spectral convergence of examples, gradient of the first",
            SpectralConvergence.apply,
            spectral_convergence,
            lambda: {"s": torch.rand(4, 5), "t": 0.5 + torch.rand(4, 5)},
            whole_numbers=False,
        ),
        named="every example is multiplied by the incoming gradient of the first",
        kinds=("another operand", "ignores the incoming gradient", "only at some indices", "permuted", "wrong sum"),
        named_words=(r"incoming gradient", r"grad_output|\bscale\b", r"first|index 0|\[0\]"),
        located=(r"gradient of s\b", r"gradient of t\b"),
    ),
]
