"""δ_ij times a gradient: what a derivative that is 1 or 0 lets through."""

from __future__ import annotations

import torch
from torch import Tensor

from manualgrad.kernels import cpu


def select(condition: Tensor, value: Tensor) -> Tensor:
    """``value`` where ``condition`` holds, 0 elsewhere.

    Not a product with 0 and 1, which would make NaN of an infinite value; a selection, as in PyTorch's own layers.
    """
    if cpu.takes(condition, value):
        return cpu.select(condition, value)
    return torch.where(condition, value, 0)


def equal(x: Tensor, value: float) -> Tensor:
    """``x == value``. Compared in a copy of ``x``, since the CPU's comparisons to bool are not vectorised."""
    return x.clone().eq_(value).bool()


def at_most(x: Tensor, value: float) -> Tensor:
    """``x <= value``, compared as in :func:`equal`."""
    return x.clone().le_(value).bool()


def at_least(x: Tensor, other: Tensor) -> Tensor:
    """``x >= other``, compared in ``x``, which is lost."""
    return x.ge_(other).bool()
