"""Formulas that PyTorch's CPU operators compute slowly, made of operators that it vectorises."""

from __future__ import annotations

import torch
from torch import Tensor

from manualgrad.cpu.tensor_checks import is_plain_tensor

_BITS = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


def takes(condition: Tensor, value: Tensor) -> bool:
    """Whether :func:`select` is for these tensors: both plain ones on the CPU, of one shape, floating point."""
    return (
        value.device.type == "cpu"
        and value.dtype in _BITS
        and condition.shape == value.shape
        and is_plain_tensor(condition)
        and is_plain_tensor(value)
        and not value.is_neg()  # its bits are not those of its values
    )


def select(condition: Tensor, value: Tensor) -> Tensor:
    """``value`` and all bits where ``condition`` holds, and no bits elsewhere, which is +0."""
    bits = _BITS[value.dtype]
    mask = condition.to(bits).neg_()  # −1 has all bits set
    return mask.bitwise_and_(value.view(bits)).view(value.dtype)


COMPARISONS = {"==": "eq", ">=": "ge", "<=": "le"}


def holds(x: Tensor, comparison: str, other: Tensor | float) -> Tensor:
    """``x == other`` or another of ``COMPARISONS``: into a copy of ``x``, as 1 and 0. Not so those to bool."""
    return getattr(x.clone(), f"{COMPARISONS[comparison]}_")(other).bool()
