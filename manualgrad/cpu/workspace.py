"""Where kernels write: all memory that they are given comes from here, or is that of tensors they read."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

LINE = 64  # bytes that the processor moves at once


def new(*shape: int, dtype: torch.dtype = torch.float32, zeros: bool = False) -> Tensor:
    """A tensor on the CPU, of ``zeros`` or of anything."""
    make = torch.zeros if zeros else torch.empty
    return make(shape, dtype=dtype, device="cpu")  # whatever the default device is


def like(t: Tensor) -> Tensor:
    """A tensor such as ``t``, which lies dense, of anything."""
    return torch.empty_like(t, requires_grad=False)


def offsets(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Where parts of so many bytes begin in one piece of memory, each on a line of its own; and the bytes of all."""
    found, end = [], 0
    for size in sizes:
        found.append(end)
        end += -(-size // LINE) * LINE
    return found, end


def new_parts(total: int, _offsets: Sequence[int], _sizes: Sequence[int]) -> Tensor:
    """One piece of memory with such parts, (total,) uint8."""
    return new(total, dtype=torch.uint8)
