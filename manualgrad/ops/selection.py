"""Selection by a mask: δ_ij times a gradient, for derivatives that are 1 or 0."""

from __future__ import annotations

import operator

import torch
from torch import Tensor

from manualgrad.cpu import masking
from manualgrad.cpu.tensor_checks import is_plain_tensor


def select(condition: Tensor, value: Tensor) -> Tensor:
    """``value`` where ``condition`` is True, 0 elsewhere.

    This is a selection, as in PyTorch's own layers. A product with 0 and 1 would turn an infinite value into NaN.
    """
    if masking.supports_select(condition, value):
        return masking.select(condition, value)
    return torch.where(condition, value, 0)


def compare(x: Tensor, comparison: str, other: Tensor | float) -> Tensor:
    """Mask of x == other, x >= other or x <= other; ``comparison`` is "==", ">=" or "<="."""
    if x.is_cpu and is_plain_tensor(x):
        return masking.compare(x, comparison, other)
    mask: Tensor = getattr(operator, masking.COMPARISONS[comparison])(x, other)
    return mask
