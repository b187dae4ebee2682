"""Gradients of complex inputs or outputs that differ from PyTorch's: the conjugate of the Wirtinger derivative."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from compare.case import Case
from tests.compare.gallery.soundness.wrong_gradient import WrongGradient, complex_randn, from_output, wrong
from tests.compare.gallery.wrong_function import hand_written, randn


def fourier_matrix(n: int) -> Tensor:
    """Matrix of the discrete Fourier transform of ``n`` numbers with a phase for each row, so not symmetric."""
    k = torch.arange(n, dtype=torch.float64)
    return torch.polar(torch.ones(n, n, dtype=torch.float64), -2 * math.pi * (k[:, None] * k / n + k[:, None] / 8))


class Transform(Function):
    """Linear map by a fixed matrix; backward has the transposed matrix in place of the adjoint."""

    @staticmethod
    def forward(z: Tensor, matrix: Tensor) -> Tensor:
        return z @ matrix

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.matrix = inputs[1]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return g @ ctx.matrix.T, None


def transform(function: Any) -> Any:
    return lambda z: function(z, fourier_matrix(z.shape[-1]).to(z))


class Filter(nn.Module):
    """Multiplication by a complex weight, of which there is one for each column."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.polar(torch.ones(3), torch.linspace(0.3, 2, 3)))

    def forward(self, z: Tensor) -> Tensor:
        return z * self.weight


class FilterFunction(Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(z, w)
        return z * w

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        z, w = ctx.saved_tensors
        return g * w.conj(), (g * z).sum(0)


class WrongFilter(Filter):
    def forward(self, z: Tensor) -> Tensor:
        return FilterFunction.apply(z, self.weight)


def filter_module() -> WrongGradient:
    case = Case.from_modules(
        "filter: conj missing in the gradient of the weight", WrongFilter(), Filter(),
        lambda: torch.randn(4, 3, dtype=torch.complex64),
    )  # fmt: skip
    return WrongGradient(lambda: case, "weight")


def squared_abs(z: Tensor) -> Tensor:
    return z.real.square() + z.imag.square()


def product_of_real(x: Tensor, w: Tensor) -> Tensor:
    """Product of a real x and a complex w."""
    return x.to(w.dtype) @ w


def spectrum(z: Tensor) -> Tensor:
    """Fourier transform of real signals, as power."""
    return torch.fft.rfft(z, dim=-1, norm="ortho").abs().square()


def spectrum_backward(g: Tensor, x: Tensor) -> Tensor:
    """Count the frequencies twice that have no mirrored one."""
    y = 4 * g * torch.fft.rfft(x, dim=-1, norm="ortho")
    return torch.fft.irfft(y, n=x.shape[-1], dim=-1, norm="ortho")


def correlate(z: Tensor, w: Tensor) -> Tensor:
    """Correlation along the last dimension: (N, C, L) and (C, K) give (N, L − K + 1)."""
    return torch.einsum("nclk,ck->nl", z.unfold(2, w.shape[1], 1), w)


def correlate_backward(g: Tensor, z: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Conjugate the weight where z belongs."""
    grad_z = torch.zeros_like(z)
    for k in range(w.shape[1]):
        grad_z[:, :, k : k + g.shape[1]] += torch.einsum("nl,c->ncl", g, w[:, k].conj())
    return grad_z, torch.einsum("nclk,nl->ck", z.unfold(2, w.shape[1], 1), g)


def one_element_off(g: Tensor, z: Tensor) -> Tensor:
    grad = g * z.sin().conj() * -1
    grad[0, 0] += 1e-3j * g[0, 0]
    return grad


def layers(z: Tensor) -> Tensor:
    """Split ReLU, as real numbers of shape (..., 2)."""
    return torch.view_as_real(z).relu()


def layers_backward(g: Tensor, z: Tensor) -> Tensor:
    """Mask both parts by the real one."""
    return torch.view_as_complex(g.contiguous()) * (z.real > 0)


Z = complex_randn(z=(3, 4))
AB = complex_randn(a=(2, 3), b=(2, 3))

COMPLEX_NUMBERS = [
    wrong("product: conj missing", "a", hand_written(torch.mul, lambda g, a, b: (g * b, g * a.conj())), torch.mul,
          AB),
    wrong("product: conj of g", "b", hand_written(torch.mul, lambda g, a, b: (g * b.conj(), g.conj() * a)),
          torch.mul, AB),
    wrong("matrix product: transposed in place of adjoint", "b",
          hand_written(torch.matmul, lambda g, a, b: (g @ b.mH, a.mT @ g)), torch.matmul,
          complex_randn(a=(2, 3, 2), b=(2, 2, 3))),
    wrong("absolute value: conj of z", "z", hand_written(torch.abs, lambda g, z: g * z.conj() / z.abs()), torch.abs,
          Z),
    wrong("squared absolute value: factor 2 missing", "z", hand_written(squared_abs, lambda g, z: g * z),
          squared_abs, complex_randn(z=(2, 2, 3))),
    wrong("division: conj missing for the denominator", "b",
          hand_written(torch.div, lambda g, a, b: (g / b.conj(), -g * a / (b * b))), torch.div, AB),
    wrong("exponential: conj missing", "z", from_output(torch.exp, lambda g, y, z: g * y), torch.exp, Z),
    wrong("exponential of one number: conj missing", "z", from_output(torch.exp, lambda g, y, z: g * y), torch.exp,
          complex_randn(z=())),
    wrong("sine: conj of the whole gradient", "z", hand_written(torch.sin, lambda g, z: g.conj() * z.cos()),
          torch.sin, Z),
    wrong("cosine: one imaginary part off by a thousandth", "z", hand_written(torch.cos, one_element_off), torch.cos,
          complex_randn(z=(4, 4))),
    wrong("square: 10 % too large in the imaginary part", "z",
          hand_written(torch.square, lambda g, z: torch.complex((2 * g * z.conj()).real, 2.2 * (g * z.conj()).imag)),
          torch.square, Z),
    wrong("tanh: imaginary part missing", "z",
          from_output(torch.tanh, lambda g, y, z: (g * (1 - y * y).conj()).real.to(g.dtype)), torch.tanh, Z),
    wrong("Fourier transform: transposed in place of adjoint", "z", transform(Transform.apply),
          transform(torch.matmul),
          Z),
    wrong("real part: halved", "z", hand_written(torch.real, lambda g, z: g.to(z.dtype) / 2), torch.real, Z),
    wrong("imaginary part: sign of i", "z", hand_written(torch.imag, lambda g, z: -1j * g), torch.imag, Z),
    wrong("angle: conj of z", "z", hand_written(torch.angle, lambda g, z: 1j * g * z.conj() / squared_abs(z)),
          torch.angle, Z),
    wrong("complex from its parts: real part of g for both", "b",
          hand_written(torch.complex, lambda g, a, b: (g.real, g.real)), torch.complex, randn(a=(3, 2), b=(3, 2))),
    wrong("polar: conj missing in the gradient of the angle", "angle",
          hand_written(torch.polar, lambda g, r, t: ((g * torch.exp(-1j * t)).real,
                                                     (g * torch.polar(r, t) * 1j).real)),
          torch.polar, randn(radius=(3, 2), angle=(3, 2))),
    wrong("real x times complex w: conj missing in the gradient of x", "x",
          hand_written(product_of_real, lambda g, x, w: ((g @ w.T).real, x.T.to(g.dtype) @ g)), product_of_real,
          lambda: {"x": torch.randn(3, 2), "w": torch.randn(2, 4, dtype=torch.complex128)}),
    wrong("real scale: conj missing in its gradient", "s",
          hand_written(torch.mul, lambda g, z, s: (g * s, (g * z).real.sum())), torch.mul,
          lambda: {"z": torch.randn(2, 3, dtype=torch.complex128), "s": torch.randn(())}),
    wrong("reciprocal: conj missing", "z", from_output(torch.reciprocal, lambda g, y, z: -g * y * y),
          torch.reciprocal, Z),
    wrong("conjugate: g unchanged", "z", hand_written(lambda z: z.conj().clone(), lambda g, z: g),
          lambda z: z.conj().clone(), complex_randn(z=(5,))),
    wrong("power spectrum of real signals: ends counted twice", "x", hand_written(spectrum, spectrum_backward),
          spectrum, randn(x=(3, 6))),
    wrong("correlation: conj missing in the gradient of the weight", "w", hand_written(correlate, correlate_backward),
          correlate, complex_randn(z=(2, 2, 5), w=(2, 3))),
    wrong("split ReLU: both parts masked by the real one", "z", hand_written(layers, layers_backward), layers,
          complex_randn(z=(2, 2, 3))),
    wrong("product with real outputs: conj missing", "z",
          lambda z, s: torch.view_as_real(hand_written(torch.square, lambda g, z: 2 * g * z)(z)) * s,
          lambda z, s: torch.view_as_real(z * z) * s,
          lambda: {"z": torch.randn(3, 2, dtype=torch.complex128), "s": torch.randn(3, 2, 2)}),
    filter_module(),
]  # fmt: skip
