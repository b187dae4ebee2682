"""δ_ij times a gradient: what a derivative that is 1 or 0 lets through."""

from __future__ import annotations

import operator

import torch
from torch import Tensor

from manualgrad.cpu import masking
from manualgrad.cpu.tensor_checks import is_plain_tensor


def select(condition: Tensor, value: Tensor) -> Tensor:
    """``value`` where ``condition`` holds, 0 elsewhere.

    Not a product with 0 and 1, which would make NaN of an infinite value; a selection, as in PyTorch's own layers.
    """
    if masking.takes(condition, value):
        return masking.select(condition, value)
    return torch.where(condition, value, 0)


def holds(x: Tensor, comparison: str, other: Tensor | float) -> Tensor:
    """Whether x == other, x >= other or x <= other, as ``comparison`` says."""
    if x.is_cpu and is_plain_tensor(x):
        return masking.holds(x, comparison, other)
    return getattr(operator, masking.COMPARISONS[comparison])(x, other)
