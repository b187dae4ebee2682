"""Right Functions of complex inputs or outputs, in PyTorch's convention."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tests.compare.gallery.soundness.complex_numbers import (
    AB,
    Z,
    correlate,
    fourier_matrix,
    product_of_real,
    squared_abs,
    transform,
)
from tests.compare.gallery.soundness.right_layers import right, right_from_output
from tests.compare.gallery.soundness.wrong_gradient import complex_randn
from tests.compare.gallery.wrong_function import randn


def correlate_backward(g: Tensor, z: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    grad_z = torch.zeros_like(z)
    for k in range(w.shape[1]):
        grad_z[:, :, k : k + g.shape[1]] += torch.einsum("nl,c->ncl", g, w[:, k].conj())
    return grad_z, torch.einsum("nclk,nl->ck", z.unfold(2, w.shape[1], 1).conj(), g)


def split_relu(z: Tensor) -> Tensor:
    return torch.view_as_real(z).relu()


def adjoint(make_matrix: Callable[[int], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda g, z: g @ make_matrix(z.shape[-1]).to(z).mH


RIGHT_COMPLEX = [
    right("complex product", torch.mul, lambda g, a, b: (g * b.conj(), g * a.conj()), AB),
    right("complex matrix product", torch.matmul, lambda g, a, b: (g @ b.mH, a.mH @ g),
          complex_randn(a=(2, 3, 2), b=(2, 2, 3))),
    right("complex division", torch.div, lambda g, a, b: (g / b.conj(), -g * (a / (b * b)).conj()), AB,
          whole_numbers=False),
    right("absolute value of complex numbers", torch.abs, lambda g, z: g * z.sgn(), Z),
    right("squared absolute value", squared_abs, lambda g, z: 2 * g * z, complex_randn(z=(2, 2, 3))),
    right_from_output("complex exponential", torch.exp, lambda g, y, z: g * y.conj(), Z),
    right("complex sine of one number", torch.sin, lambda g, z: g * z.cos().conj(), complex_randn(z=())),
    right("Fourier transform", transform(torch.matmul), adjoint(fourier_matrix), Z),
    right("real part", lambda z: z.real.clone(), lambda g, z: g.to(z.dtype), Z),
    right("angle", torch.angle, lambda g, z: 1j * g * z / squared_abs(z), Z, whole_numbers=False),
    right("complex from its parts", torch.complex, lambda g, a, b: (g.real, g.imag), randn(a=(3, 2), b=(3, 2))),
    right("real x times complex w", product_of_real, lambda g, x, w: ((g @ w.mH).real, x.T.to(g.dtype) @ g),
          lambda: {"x": torch.randn(3, 2), "w": torch.randn(2, 4, dtype=torch.complex128)}),
    right("correlation of complex signals", correlate, correlate_backward, complex_randn(z=(2, 2, 5), w=(2, 3))),
    right("split ReLU", split_relu,
          lambda g, z: torch.view_as_complex((g * (torch.view_as_real(z) > 0)).contiguous()),
          complex_randn(z=(2, 3))),
]  # fmt: skip
