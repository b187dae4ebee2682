"""Selections and comparisons that PyTorch's CPU operators compute slowly, made of operators that it vectorises."""

from __future__ import annotations

import torch
from torch import Tensor

from manualgrad.cpu.tensor_checks import is_plain_tensor

_INT_DTYPES = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


def supports_select(condition: Tensor, value: Tensor) -> bool:
    """Return True if :func:`select` supports these: plain CPU tensors of one shape, ``value`` of floating point."""
    return (
        value.device.type == "cpu"
        and value.dtype in _INT_DTYPES
        and condition.shape == value.shape
        and is_plain_tensor(condition)
        and is_plain_tensor(value)
        and not value.is_neg()  # the bits in memory have the other sign
    )


def select(condition: Tensor, value: Tensor) -> Tensor:
    """Return ``value`` where ``condition`` is True and +0 elsewhere: a bitwise and with all bits or none."""
    dtype = _INT_DTYPES[value.dtype]
    mask = condition.to(dtype).neg_()  # −1 has all bits set
    return mask.bitwise_and_(value.view(dtype)).view(value.dtype)


COMPARISONS = {"==": "eq", ">=": "ge", "<=": "le"}


def compare(x: Tensor, comparison: str, other: Tensor | float) -> Tensor:
    """Return the mask of x == other, or of another of ``COMPARISONS``.

    PyTorch vectorises the comparison that writes 1 and 0 in the dtype of ``x``, and not the one that writes bool."""
    mask: Tensor = getattr(x.clone(), f"{COMPARISONS[comparison]}_")(other)
    return mask.bool()
