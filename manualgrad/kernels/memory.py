"""Where kernels write: all memory that they are given comes from here, or is that of tensors they read."""

from __future__ import annotations

import torch
from torch import Tensor


def new(*shape: int, dtype: torch.dtype = torch.float32, zeros: bool = False) -> Tensor:
    """A tensor on the CPU, of ``zeros`` or of anything."""
    return torch.zeros(shape, dtype=dtype) if zeros else torch.empty(shape, dtype=dtype)
