"""Spectra: circular autocorrelation, the inverse real Fourier transform."""

from __future__ import annotations

import torch
from torch.fft import irfft, rfft

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas

LENGTH = 7


def autocorrelation(x):
    spectrum = rfft(x)
    return irfft(spectrum * spectrum.conj(), n=LENGTH)


def autocorrelation_backward(g, x, *, both=True):
    of_g = rfft(g)
    return irfft(rfft(x) * (of_g + of_g.conj() if both else of_g), n=LENGTH)


def inverse(z):
    return irfft(z, n=LENGTH)


def inverse_backward(g, z, *, doubled=True):
    grad = rfft(g) / LENGTH
    weight = torch.full_like(g[0, : z.shape[1]], 2 if doubled else 1)
    weight[0] = 1
    return grad * weight


OPERATIONS = [
    Formulas(
        "autocorrelation",
        autocorrelation,
        lambda: {"x": torch.randn(3, LENGTH)},
        autocorrelation_backward,
        (
            Mistake(
                "autocorrelation, second use",
                lambda g, x: autocorrelation_backward(g, x, both=False),
                named="x is used twice, and backward has the term of one use only",
                kinds=("missing term",),
                named_words=(r"missing", r"constant", r"conj"),
                located=(r"gradient of x",),
            ),
        ),
    ),
    Formulas(
        "inverse real Fourier transform",
        inverse,
        lambda: {"z": torch.randn(3, LENGTH // 2 + 1, dtype=torch.complex64)},
        inverse_backward,
        (
            Mistake(
                "inverse real Fourier transform, not doubled",
                lambda g, z: inverse_backward(g, z, doubled=False),
                named="the frequencies from 1, which stand for two each, lack the factor 2",
                kinds=("factor by element", "only at some indices"),
                named_words=(
                    r"\b0\.5\b|1/2|\bhalf\b",
                    r"columns? (\[)?1",
                    r"columns? ?>=? ?[01]",
                    r"dimension 1.*>=? ?[01]",
                ),
                located=(r"gradient of z", r"column|dimension 1|, [123]\]|first|>=? ?[01]"),
            ),
        ),
    ),
]

WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
