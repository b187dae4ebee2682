"""Waves: energies of windowed frames, envelope of a signal, a flow that steepens."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

FRAME, HOP = 5, 2
EPS = 0.1
STEP, CELL = 0.2, 0.5


def frame_energies(x):
    window = torch.hann_window(FRAME, dtype=x.dtype)
    return (x.unfold(1, FRAME, HOP) * window).square().sum(2)


class FrameEnergiesFunction(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return frame_energies(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        window = torch.hann_window(FRAME, dtype=x.dtype)
        grad = torch.zeros_like(x)
        for t in range(g.shape[1]):
            places = slice(t * HOP, t * HOP + FRAME)
            grad[:, places] += 2 * g[:, t, None] * (x[:, places] * window) * window
        return grad


class STEnergy(Function):
    @staticmethod
    def forward(ctx, signal):
        frames = signal.unfold(-1, FRAME, HOP) * torch.hann_window(FRAME, dtype=signal.dtype)
        ctx.save_for_backward(frames)
        ctx.length = signal.size(-1)
        return frames.pow(2).sum(dim=-1)

    @staticmethod
    def backward(ctx, grad_energy):
        (frames,) = ctx.saved_tensors
        grad_frames = 2 * grad_energy.unsqueeze(-1) * frames * torch.hann_window(FRAME)
        grad_signal = grad_frames.new_zeros(frames.size(0), ctx.length)
        for t in range(frames.size(1)):
            grad_signal[:, t * HOP : t * HOP + FRAME] += grad_frames[:, t]
        return grad_signal


def one_sided(length):
    half = torch.zeros(length)
    half[0] = half[length // 2] = 1
    half[1 : length // 2] = 2
    return half


def envelope(x):
    analytic = torch.fft.ifft(torch.fft.fft(x) * one_sided(x.shape[1]))
    return torch.sqrt(analytic.real**2 + analytic.imag**2 + EPS)


class EnvelopeFunction(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return envelope(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        half = one_sided(x.shape[1])
        analytic = torch.fft.ifft(torch.fft.fft(x) * half)
        to_analytic = analytic * (g / envelope(x))
        return torch.fft.ifft(torch.fft.fft(to_analytic) * half).real


def hilbert(x):
    n = x.size(-1)
    k = torch.fft.rfft(x)
    k[..., 0] = 0
    k[..., -1] = 0
    return torch.fft.irfft(k * -1j, n=n)


class HilbertEnvelope(Function):
    @staticmethod
    def forward(ctx, x):
        quad = hilbert(x)
        env = torch.sqrt(x * x + quad * quad + EPS)
        ctx.save_for_backward(x, quad, env)
        return env

    @staticmethod
    def backward(ctx, grad_env):
        x, quad, env = ctx.saved_tensors
        grad_sq = grad_env / env
        return grad_sq * x + hilbert(grad_sq * quad)


def flow_residual(before, after, viscosity):
    left, right = after.roll(1, 1), after.roll(-1, 1)
    slope, bend = (right - left) / (2 * CELL), (right - 2 * after + left) / CELL**2
    return (after - before) / STEP + after * slope - viscosity * bend


class FlowResidualFunction(Function):
    @staticmethod
    def forward(ctx, before, after, viscosity):
        ctx.save_for_backward(before, after, viscosity)
        return flow_residual(before, after, viscosity)

    @staticmethod
    def backward(ctx, g):
        _, after, viscosity = ctx.saved_tensors
        left, right = after.roll(1, 1), after.roll(-1, 1)
        to_right = after * g / (2 * CELL) - viscosity * g / CELL**2
        to_left = -after * g / (2 * CELL) - viscosity * g / CELL**2
        to_after = g / STEP + g * (right - left) / (2 * CELL) + 2 * viscosity * g / CELL**2
        to_after = to_after + to_right.roll(1, 1) + to_left.roll(-1, 1)
        return -g / STEP, to_after, -(g * (right - 2 * after + left)).sum() / CELL**2


def ddx(u):
    return (torch.roll(u, -1, dims=1) - torch.roll(u, 1, dims=1)) / (2 * CELL)


def d2dx2(u):
    return (torch.roll(u, -1, dims=1) - 2 * u + torch.roll(u, 1, dims=1)) / CELL**2


class BurgersResidual(Function):
    @staticmethod
    def forward(ctx, u0, u1, nu):
        ux, uxx = ddx(u1), d2dx2(u1)
        ctx.save_for_backward(u1, ux, uxx, nu)
        return (u1 - u0) / STEP + u1 * ux - nu * uxx

    @staticmethod
    def backward(ctx, grad_r):
        u1, ux, uxx, nu = ctx.saved_tensors
        grad_u0 = -grad_r / STEP
        grad_u1 = grad_r / STEP + grad_r * ux - u1 * ddx(grad_r) - nu * d2dx2(grad_r)
        grad_nu = -(grad_r * uxx).sum()
        return grad_u0, grad_u1, grad_nu


OPERATIONS = [
    Operation(
        "energies of frames, dtype of the window",
        FrameEnergiesFunction,
        STEnergy,
        frame_energies,
        lambda: (torch.randn(2, 11),),
        named="backward's window is float32 whatever the dtype of x: float64 gradients are no more exact than that",
        kinds=("only in one dtype",),
        named_words=(r"float64|float32|dtype|precision",),
        located=(r"gradient of (x|signal|input 0)",),
    ),
    Operation(
        "envelope, sign of the quarter turn's transpose",
        EnvelopeFunction,
        HilbertEnvelope,
        envelope,
        lambda: (torch.randn(3, 8),),
        named="the Hilbert transform's transpose is its negative: the second part has the wrong sign",
        kinds=("not transposed", "factor of one term", "conjugated", "flipped"),
        named_words=(r"transpos", r"\bsign\b|negat|\bminus\b", r"conjugat"),
        located=(r"gradient of (x|input 0)",),
    ),
    Operation(
        "flow that steepens, order of product and slope",
        FlowResidualFunction,
        BurgersResidual,
        flow_residual,
        lambda: {"before": torch.randn(2, 6), "after": torch.randn(2, 6), "viscosity": torch.rand(())},
        named="u1: the product with u1 comes after the difference of the incoming gradient, where it belongs before",
        kinds=("not transposed", "another operand", "permuted", "step left out", "shifted"),
        named_words=(r"\bafter\b.*\bbefore\b|\border\b", r"transpos", r"ddx|roll", r"product|multipli"),
        located=(r"gradient of (after|u1)",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
