"""Signals: energy of neighbouring samples, frames added with a window, centre of a spectrum."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

FRAME, HOP = 6, 3


def teager_energy(x):
    return x[:, 1:-1].square() - x[:, :-2] * x[:, 2:]


class EnergyOfNeighboursFunction(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return teager_energy(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        grad = torch.zeros_like(x)
        grad[:, 1:-1] += 2 * g * x[:, 1:-1]
        grad[:, :-2] -= g * x[:, 2:]
        grad[:, 2:] -= g * x[:, :-2]
        return grad


class TeagerKaiser(Function):
    """psi[n] = x[n]^2 - x[n-1] x[n+1], without the first and the last sample."""

    @staticmethod
    def forward(ctx, x):
        prev, cur, nxt = x[:, :-2], x[:, 1:-1], x[:, 2:]
        ctx.save_for_backward(prev, cur, nxt)
        return cur * cur - prev * nxt

    @staticmethod
    def backward(ctx, grad_out):
        prev, cur, nxt = ctx.saved_tensors
        batch, length = grad_out.shape
        grad_x = grad_out.new_zeros(batch, length + 2)
        for n in range(length):
            grad_x[:, n] -= grad_out[:, n] * prev[:, n]
            grad_x[:, n + 1] += 2 * grad_out[:, n] * cur[:, n]
            grad_x[:, n + 2] -= grad_out[:, n] * nxt[:, n]
        return grad_x


def add_frames(frames, window):
    count = frames.size(1)
    total = frames.new_zeros(frames.size(0), (count - 1) * HOP + FRAME)
    weight = torch.zeros_like(total[0])
    for k in range(count):
        pad = (k * HOP, total.size(1) - k * HOP - FRAME)
        total = total + torch.nn.functional.pad(frames[:, k] * window, pad)
        weight = weight + torch.nn.functional.pad(window.square(), pad)
    return total / weight


class AddedFramesFunction(Function):
    @staticmethod
    def forward(ctx, frames, window):
        y = add_frames(frames, window)
        weight = frames.new_zeros(y.size(1))
        for k in range(frames.size(1)):
            weight[k * HOP : k * HOP + FRAME] += window**2
        ctx.save_for_backward(frames, window, weight, y)
        return y

    @staticmethod
    def backward(ctx, g):
        frames, window, weight, y = ctx.saved_tensors
        g_total = (g / weight).unfold(1, FRAME, HOP)
        g_weight = -(g * y / weight).sum(0).unfold(0, FRAME, HOP)
        return g_total * window, (g_total * frames).sum((0, 1)) + 2 * window * g_weight.sum(0)


class WeightedOverlapAdd(Function):
    """Synthesis half of an STFT: windowed frames are added, then divided by the sum of the squared windows."""

    @staticmethod
    def forward(ctx, frames, window):
        B, T, L = frames.shape
        out = torch.zeros(B, (T - 1) * HOP + L, dtype=frames.dtype, device=frames.device)
        env = torch.zeros_like(out[0])
        for t in range(T):
            start = t * HOP
            out[:, start : start + L] += frames[:, t] * window
            env[start : start + L] += window**2
        ctx.save_for_backward(frames, window, env)
        return out / env

    @staticmethod
    def backward(ctx, grad_out):
        frames, window, env = ctx.saved_tensors
        grad_out = grad_out / env
        grad_frames = torch.zeros_like(frames)
        grad_window = torch.zeros_like(window)
        for t in range(frames.shape[1]):
            piece = grad_out[:, t * HOP : t * HOP + FRAME]
            grad_frames[:, t] = piece * window
            grad_window += (piece * frames[:, t]).sum(dim=0)
        return grad_frames, grad_window


def spectral_centroid(magnitude, frequency):
    return (magnitude.square() * frequency).sum(-1) / magnitude.square().sum(-1)


class SpectralCentroid(Function):
    """Centre of the power spectrum of each frame."""

    @staticmethod
    def forward(ctx, magnitude, frequency):
        power = magnitude.pow(2)
        total = power.sum(dim=-1, keepdim=True)
        centroid = (power * frequency).sum(dim=-1, keepdim=True) / total
        ctx.save_for_backward(magnitude, frequency, total, centroid)
        return centroid.squeeze(-1)

    @staticmethod
    def backward(ctx, grad):
        magnitude, frequency, total, centroid = ctx.saved_tensors
        grad = grad.unsqueeze(-1)
        grad_power = grad * (frequency - centroid) / total
        grad_frequency = (grad * magnitude**2).sum(dim=tuple(range(magnitude.dim() - 1)))
        return 2 * magnitude * grad_power, grad_frequency


OPERATIONS = [
    Operation(
        "energy of neighbouring samples, neighbours exchanged",
        EnergyOfNeighboursFunction,
        TeagerKaiser,
        teager_energy,
        lambda: {"x": torch.randn(3, 9)},
        named="each factor of the product of neighbours gets itself as its derivative, not the other factor",
        kinds=("another operand", "swapped", "shifted"),
        named_words=(r"nxt|prev", r"x\[.*2", r"neighbou?r|exchanged|swapped"),
        located=(r"gradient of x\b",),
    ),
    Operation(
        "frames added with a window, window in the divisor",
        AddedFramesFunction,
        WeightedOverlapAdd,
        add_frames,
        lambda: {"frames": torch.randn(2, 4, FRAME), "window": 0.5 + torch.rand(FRAME)},
        named="window: the term through the sum of the squared windows, which divides the output, is missing",
        kinds=("missing term", "step left out"),
        named_words=(r"missing", r"\benv\b|weight|divisor|denominator", r"constant"),
        located=(r"gradient of window\b",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "centre of a power spectrum, frequencies without the total",
            SpectralCentroid.apply,
            spectral_centroid,
            lambda: {"magnitude": 0.3 + torch.rand(3, 5), "frequency": torch.randn(5)},
            whole_numbers=False,
        ),
        named="frequency: the division by the total power is left out",
        kinds=("step left out", "factor by element", "factor of one term", "another operand"),
        named_words=(r"total", r"divi|/"),
        located=(r"gradient of frequency\b",),
    ),
]
