"""Sounds: band-pass kernels, filters from reflections."""

from __future__ import annotations

import math

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right


def band_pass(low, band):
    steps = torch.arange(-3, 4, dtype=low.dtype)
    window = 0.54 + 0.46 * torch.cos(math.pi * steps / 3)
    start = low.abs()[:, None]
    stop = start + band.abs()[:, None]
    return window * (2 * stop * torch.sinc(2 * stop * steps) - 2 * start * torch.sinc(2 * start * steps))


class BandPassFunction(Function):
    @staticmethod
    def forward(ctx, low, band):
        ctx.save_for_backward(low, band)
        return band_pass(low, band)

    @staticmethod
    def backward(ctx, g):
        low, band = ctx.saved_tensors
        steps = torch.arange(-3, 4, dtype=low.dtype)
        window = 0.54 + 0.46 * torch.cos(math.pi * steps / 3)
        start, width = low.abs()[:, None], band.abs()[:, None]
        to_stop = (g * window * 2 * torch.cos(2 * math.pi * (start + width) * steps)).sum(1)
        to_start = (g * window * -2 * torch.cos(2 * math.pi * start * steps)).sum(1)
        return low.sign() * (to_start + to_stop), band.sign() * to_stop


class SincKernel(Function):
    """Filters of SincNet (Ravanelli and Bengio 2018)."""

    @staticmethod
    def forward(ctx, low_hz, band_hz):
        n = torch.arange(-3, 4).to(low_hz)
        hamming = 0.54 + 0.46 * torch.cos(math.pi * n / 3)
        f1 = torch.abs(low_hz)
        f2 = f1 + torch.abs(band_hz)
        ctx.save_for_backward(low_hz, band_hz, f1, f2, n, hamming)
        low_pass1 = 2 * f1[:, None] * torch.sinc(2 * f1[:, None] * n)
        low_pass2 = 2 * f2[:, None] * torch.sinc(2 * f2[:, None] * n)
        return (low_pass2 - low_pass1) * hamming

    @staticmethod
    def backward(ctx, grad_kernel):
        low_hz, band_hz, f1, f2, n, hamming = ctx.saved_tensors
        gw = grad_kernel * hamming
        grad_f1 = -(gw * 2 * torch.cos(2 * math.pi * f1[:, None] * n)).sum(1)
        grad_f2 = (gw * 2 * torch.cos(2 * math.pi * f2[:, None] * n)).sum(1)
        grad_low = grad_f1 * torch.sign(low_hz)
        grad_band = grad_f2 * torch.sign(band_hz)
        return grad_low, grad_band


def filter_from_reflections(reflections):
    a = torch.ones_like(reflections[:, :1])
    for k in reflections.unbind(1):
        a = torch.nn.functional.pad(a, (0, 1))
        a = a + k[:, None] * a.flip(1)
    return a


class FilterFromReflectionsFunction(Function):
    @staticmethod
    def forward(ctx, reflections):
        ctx.save_for_backward(reflections)
        return filter_from_reflections(reflections)

    @staticmethod
    def backward(ctx, g):
        (reflections,) = ctx.saved_tensors
        grad = torch.empty_like(reflections)
        for order in reversed(range(reflections.shape[1])):
            before = filter_from_reflections(reflections[:, :order]) if order else torch.ones_like(g[:, :1])
            padded = torch.nn.functional.pad(before, (0, 1))
            grad[:, order] = (g * padded.flip(1)).sum(1)
            g = (g + reflections[:, order : order + 1] * g.flip(1))[:, :-1]
        return grad


class StepUp(Function):
    """Levinson's step-up recursion: reflection coefficients to the polynomial of a linear predictor."""

    @staticmethod
    def forward(ctx, k):
        a = k.new_ones(k.size(0), 1)
        ctx.padded = []
        for m in range(k.size(1)):
            a = torch.cat([a, a.new_zeros(a.size(0), 1)], dim=1)
            ctx.padded.append(a)
            a = a + k[:, m : m + 1] * a.flip(1)
        ctx.save_for_backward(k)
        return a

    @staticmethod
    def backward(ctx, grad_a):
        (k,) = ctx.saved_tensors
        grad_k = torch.zeros_like(k)
        for m in range(k.size(1) - 1, -1, -1):
            a = ctx.padded[m]
            grad_k[:, m] = (grad_a * a.flip(1)).sum(dim=1)
            grad_a = grad_a + k[:, m : m + 1] * grad_a
            grad_a = grad_a[:, :-1]
        return grad_k


OPERATIONS = [
    Operation(
        "band-pass kernels, upper edge above the lower one",
        BandPassFunction,
        SincKernel,
        band_pass,
        lambda: {"low": 0.2 * torch.randn(4), "band": 0.2 * torch.randn(4)},
        named="low: the upper edge is low plus band, and the part of low's gradient through it is missing",
        kinds=("missing term",),
        named_words=(r"missing", r"\bf2\b|grad_f2|stop|upper"),
        located=(r"gradient of low",),
        options={"whole_numbers": False},
    ),
    Operation(
        "filter from reflections, reversed gradient",
        FilterFromReflectionsFunction,
        StepUp,
        filter_from_reflections,
        lambda: {"reflections": torch.rand(3, 4) - 0.5},
        named="carried back, the reflection's part of the gradient is not reversed, as it was in forward",
        kinds=("flipped", "permuted", "another operand", "step left out", "missing term"),
        named_words=(r"flip|revers",),
        located=(r"gradient of (reflections|k)\b",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
