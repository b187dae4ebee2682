"""Fourier transforms and complex numbers: circular cross-correlation, a complex linear layer."""

from __future__ import annotations

import torch
from torch.fft import fft, ifft

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas


def correlation(x, y):
    return ifft(fft(x) * fft(y).conj()).real


def correlation_backward(g, x, y, *, conjugated=False):
    of_y = fft(y).conj() if conjugated else fft(y)
    return ifft(fft(g) * of_y).real, ifft(fft(g).conj() * fft(x)).real


def linear(x, w):
    return x @ w


def linear_backward(g, x, w, *, conjugated=True):
    return g @ w.mH, (x.mH if conjugated else x.mT) @ g


OPERATIONS = [
    Formulas(
        "circular correlation",
        correlation,
        lambda: {"x": torch.randn(2, 7), "y": torch.randn(2, 7)},
        correlation_backward,
        (
            Mistake(
                "circular correlation, conjugate",
                lambda g, x, y: correlation_backward(g, x, y, conjugated=True),
                named="the spectrum of y is conjugated in the gradient of x: a correlation instead of a convolution",
                kinds=("conjugated", "flipped", "not transposed", "permuted", "another operand", "step left out"),
                named_words=(r"conj", r"revers", r"flip", r"transpos"),
                located=(r"gradient of x",),
            ),
        ),
    ),
    Formulas(
        "complex linear layer",
        linear,
        lambda: {"x": torch.randn(4, 3, dtype=torch.complex64), "w": torch.randn(3, 5, dtype=torch.complex64)},
        linear_backward,
        (
            Mistake(
                "complex linear layer, input not conjugated",
                lambda g, x, w: linear_backward(g, x, w, conjugated=False),
                named="the input is transposed but not conjugated in the gradient of w",
                kinds=("conjugated",),
                named_words=(r"conj",),
                located=(r"gradient of w",),
            ),
        ),
    ),
]

WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
