"""Fourier transforms: power spectrum, cosine transform."""

from __future__ import annotations

import math

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right


class PowerSpectrum(Function):
    """|rfft(x)|² along dimension 1."""

    @staticmethod
    def forward(ctx, x):
        spectrum = torch.fft.rfft(x, dim=1)
        ctx.save_for_backward(spectrum)
        ctx.length = x.shape[1]
        return spectrum.real**2 + spectrum.imag**2

    @staticmethod
    def half_of_grad(ctx, g):
        (spectrum,) = ctx.saved_tensors
        grad = g * spectrum
        padded = torch.cat([grad, grad.new_zeros(grad.shape[0], ctx.length - grad.shape[1])], 1)
        return torch.fft.ifft(padded, dim=1, norm="forward").real

    @staticmethod
    def backward(ctx, g):
        return 2 * PowerSpectrum.half_of_grad(ctx, g)


class PowerSpectrumWrong(PowerSpectrum):
    @staticmethod
    def backward(ctx, g):
        return PowerSpectrum.half_of_grad(ctx, g)


def cosines(x):
    """Matrix of the cosine transform: cos(pi (n + 1/2) k / N) in row k and column n."""
    n = torch.arange(x.shape[1], dtype=torch.float64)
    return (math.pi / x.shape[1] * (n + 0.5) * n[:, None]).cos().to(x.dtype)


class CosineTransform(Function):
    """Cosine transform (DCT-II) of each row of x."""

    @staticmethod
    def forward(ctx, x):
        return x @ cosines(x).t()

    @staticmethod
    def backward(ctx, g):
        return g @ cosines(g)


class CosineTransformWrong(CosineTransform):
    @staticmethod
    def backward(ctx, g):
        return g @ cosines(g).t()


OPERATIONS = [
    Operation(
        "power spectrum",
        PowerSpectrum,
        PowerSpectrumWrong,
        lambda x: torch.view_as_real(torch.fft.rfft(x, dim=1)).square().sum(2),
        lambda: torch.randn(3, 6),
        named="the factor 2 of the square is missing: half of the expected gradient",
        kinds=("constant factor",),
        named_words=(r"\b(1/2|0\.5|half)\b", r"factor (of )?2\b", r"divided by 2"),
        located=(r"gradient of (x|input 0)",),
    ),
    Operation(
        "cosine transform",
        CosineTransform,
        CosineTransformWrong,
        lambda x: x @ cosines(x).t(),
        lambda: torch.randn(3, 5),
        named="the matrix of forward instead of its transpose",
        kinds=("transposed",),
        named_words=(r"transpos", r"forward .*(again|applied|instead|in place|itself)", r"inverse"),
        located=(r"gradient of (x|input 0)",),
    ),
]
WRONG, RIGHT = wrong_and_right(OPERATIONS)
