"""Real and complex tensors alike: their dtypes at one precision, and complex numbers as pairs of real ones."""

from __future__ import annotations

import torch
from torch import Tensor

COMPLEX_DTYPES = {torch.float64: torch.complex128, torch.float32: torch.complex64}


def has_gradient(tensor: Tensor) -> bool:
    """Return True for floating-point and complex tensors, whose gradients are compared."""
    return tensor.is_floating_point() or tensor.is_complex()


def dtype_at(precision: torch.dtype, tensor: Tensor) -> torch.dtype:
    """Return ``precision`` for a real tensor, and the complex dtype of such numbers for a complex one.

    Raises:
        TypeError: ``tensor`` is complex, and no complex dtype has this precision.
    """
    if not tensor.is_complex():
        return precision
    if precision not in COMPLEX_DTYPES:
        raise TypeError(f"complex inputs are not compared in {str(precision).removeprefix('torch.')}")
    return COMPLEX_DTYPES[precision]


def to_precision(tensor: Tensor, precision: torch.dtype) -> Tensor:
    """Round a real or complex tensor to numbers of ``precision``."""
    return tensor.to(dtype_at(precision, tensor))


def as_real(tensor: Tensor) -> Tensor:
    """Return a complex tensor as a real one whose last dimension holds real and imaginary part; others unchanged."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
