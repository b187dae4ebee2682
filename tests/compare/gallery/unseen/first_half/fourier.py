"""Fourier transforms: the shift of an odd number of frequencies, the real transform."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right


class Shift(Function):
    """torch.fft.fftshift along dimension 1."""

    @staticmethod
    def forward(ctx, x):
        return torch.fft.fftshift(x, 1)

    @staticmethod
    def backward(ctx, g):
        return torch.fft.ifftshift(g, 1)


class ShiftWrong(Shift):
    @staticmethod
    def backward(ctx, g):
        return torch.fft.fftshift(g, 1)


class RealFourier(Function):
    """Real and imaginary parts of torch.fft.rfft along dimension 1, as (N, L // 2 + 1, 2)."""

    @staticmethod
    def forward(ctx, x):
        ctx.length = x.shape[1]
        return torch.view_as_real(torch.fft.rfft(x, dim=1))

    @staticmethod
    def backward(ctx, g):
        full = torch.complex(g[..., 0], g[..., 1])
        padded = torch.cat([full, full.new_zeros(full.shape[0], ctx.length - full.shape[1])], 1)
        return torch.fft.ifft(padded, dim=1, norm="forward").real


class RealFourierWrong(RealFourier):
    @staticmethod
    def backward(ctx, g):
        full = torch.complex(g[..., 0], g[..., 1])
        return torch.fft.irfft(full, n=ctx.length, dim=1, norm="forward")


OPERATIONS = [
    Operation(
        "shift of frequencies",
        Shift,
        ShiftWrong,
        lambda x: torch.cat([x[:, 3:], x[:, :3]], 1),
        lambda: torch.randn(3, 5),
        named="fftshift instead of ifftshift: for 5 columns, shifted by one more",
        kinds=("shifted", "permuted"),
        named_words=(
            r"shift|roll",
            r"permut",
            r"column .*(instead|in place|for|of)",
            r"forward .*(again|applied|instead|in place)",
            r"off by one",
        ),
        located=(r"gradient of (x|input 0)", r"column|dimension 1|dim 1|by (-|−)?[14]|j|index"),
    ),
    Operation(
        "real Fourier transform",
        RealFourier,
        RealFourierWrong,
        lambda x: torch.view_as_real(torch.fft.rfft(x, dim=1)),
        lambda: torch.randn(3, 6),
        named="irfft counts the frequencies between 0 and the last twice: factor 2 on their g",
        kinds=(),
        named_words=(
            r"(frequenc|output|coefficient|contribution|g\b|column|index)\w* .*(factor|times|twice|double|2)",
            r"(factor of |times |twice|2 ?[·*x×]).*(output|coefficient|frequenc|contribution|g\b)",
        ),
        located=(r"gradient of (x|input 0)", r"output|frequenc|coefficient|g\["),
    ),
]
WRONG, RIGHT = wrong_and_right(OPERATIONS)
