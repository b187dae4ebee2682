"""Signals: a causal convolution of each channel, a delay by a fraction of a sample, polar coordinates."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch.fft import irfft, rfft, rfftfreq

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas


def causal(x, w):
    """y[t] = sum of w[j] x[t - K + 1 + j] for each channel."""
    return (F.pad(x, (w.shape[1] - 1, 0)).unfold(2, w.shape[1], 1) * w[:, None]).sum(3)


def causal_backward(g, x, w, *, before=False, flipped=True):
    extra = w.shape[1] - 1
    padded = F.pad(g, (extra, 0) if before else (0, extra))
    grad_x = (padded.unfold(2, w.shape[1], 1) * (w.flip(1) if flipped else w)[:, None]).sum(3)
    return grad_x, (F.pad(x, (extra, 0)).unfold(2, w.shape[1], 1) * g[..., None]).sum((0, 2))


def phases(x, delay):
    frequencies = rfftfreq(x.shape[1], dtype=x.dtype)
    return torch.exp(-2j * math.pi * frequencies * delay[:, None]), -2j * math.pi * frequencies


def delayed(x, delay):
    return irfft(rfft(x) * phases(x, delay)[0], n=x.shape[1])


def delayed_backward(g, x, delay, *, conjugated=True):
    phase, slope = phases(x, delay)
    back = phase.conj() if conjugated else phase
    size = x.shape[1]
    return irfft(rfft(g) * back, n=size), (g * irfft(rfft(x) * phase * slope, n=size)).sum(1)


def polar(r, angle):
    return torch.complex(r * angle.cos(), r * angle.sin())


def polar_backward(g, r, angle, *, conjugated=True):
    grad_r = g.real * angle.cos() + (1 if conjugated else -1) * g.imag * angle.sin()
    return grad_r, r * (g.imag * angle.cos() - g.real * angle.sin())


OPERATIONS = [
    Formulas(
        "causal convolution",
        causal,
        lambda: {"x": torch.randn(2, 3, 7), "w": torch.randn(3, 4)},
        causal_backward,
        (
            Mistake(
                "causal convolution, padding before",
                lambda g, x, w: causal_backward(g, x, w, before=True),
                named="the incoming gradient is padded before the first step instead of after the last: shifted by 3",
                kinds=("shifted", "not transposed", "permuted"),
                named_words=(r"shift", r"pad"),
                located=(r"gradient of x", r"\b-?3\b|dimension 2|column|last"),
            ),
            Mistake(
                "causal convolution, kernel not reversed",
                lambda g, x, w: causal_backward(g, x, w, flipped=False),
                named="the kernel is not reversed in the gradient of x",
                kinds=("flipped", "transposed", "another operand"),
                named_words=(r"revers", r"flip"),
                located=(r"gradient of x", r"\bw\b|kernel"),
            ),
        ),
    ),
    Formulas(
        "delay by a fraction",
        delayed,
        lambda: {"x": torch.randn(2, 9), "delay": torch.tensor([0.6, 1.3])},
        delayed_backward,
        (
            Mistake(
                "delay by a fraction, direction",
                lambda g, x, delay: delayed_backward(g, x, delay, conjugated=False),
                named="the incoming gradient is delayed instead of advanced: the phase is not conjugated",
                kinds=("not transposed", "conjugated"),
                named_words=(r"transpos", r"conj", r"derivative of forward"),
                located=(r"gradient of x",),
            ),
        ),
    ),
    Formulas(
        "polar coordinates",
        polar,
        lambda: {"r": 0.5 + torch.rand(4, 3), "angle": torch.randn(4, 3)},
        polar_backward,
        (
            Mistake(
                "polar coordinates, conjugate",
                lambda g, r, angle: polar_backward(g, r, angle, conjugated=False),
                named="the direction is not conjugated: the term of the imaginary part has the wrong sign",
                kinds=("conjugated", "factor of one term"),
                named_words=(r"conj", r"-1 times|wrong sign|negative|sign"),
                located=(r"gradient of r\b",),
            ),
        ),
    ),
]

WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
