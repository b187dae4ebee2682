"""Allocation of everything that kernels write: they access no other memory, except the tensors that they read.

``tests/cpu/guard_pages.py`` replaces these functions to detect accesses out of bounds.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

CACHE_LINE_BYTES = 64
SHARED_BYTES = 1 << 18  # of workspaces that calls use one after the other: what fits into the nearest caches
_CPU = torch.device("cpu")  # whatever the default device is


def new(*shape: int, dtype: torch.dtype = torch.float32, zeros: bool = False) -> Tensor:
    """Return a contiguous tensor on the CPU, not initialised unless ``zeros``."""
    factory = torch.zeros if zeros else torch.empty
    return factory(shape, dtype=dtype, device=_CPU)


def new_channels_last(
    batch: int, channels: int, height: int, width: int, *, dtype: torch.dtype = torch.float32, zeros: bool = False
) -> Tensor:
    """Return a channels_last tensor (N, C, H, W) that is no view, not initialised unless ``zeros``."""
    strides = (channels * height * width, 1, width * channels, channels)
    x = torch.empty_strided((batch, channels, height, width), strides, dtype=dtype, device=_CPU)
    return x.zero_() if zeros else x


def new_like(t: Tensor) -> Tensor:
    """Return a tensor with the shape, strides and dtype of ``t``, which has no gaps in memory; not initialised."""
    return torch.empty_like(t)


def buffer_offsets(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Lay out buffers of ``sizes`` bytes in one workspace, each from a cache line of its own.

    Returns the offset of each buffer and the size of the workspace, in bytes."""
    offsets, end = [], 0
    for size in sizes:
        offsets.append(end)
        end += -(-size // CACHE_LINE_BYTES) * CACHE_LINE_BYTES
    return offsets, end


def new_workspace(nbytes: int, _offsets: Sequence[int], _sizes: Sequence[int]) -> Tensor:
    """Return a workspace for buffers laid out by :func:`buffer_offsets`, (nbytes,) uint8, not initialised."""
    return new(nbytes, dtype=torch.uint8)


_idle_workspaces: list[Tensor] = []


def take_workspace(nbytes: int, offsets: Sequence[int], sizes: Sequence[int]) -> Tensor:
    """Return a workspace of at least ``nbytes`` for one call, which ends with :func:`give_back_workspace`.

    Small workspaces are kept for the next call, one for each thread that was inside of a call at the same time: an
    allocation takes as long as a small kernel."""
    if nbytes > SHARED_BYTES:
        return new_workspace(nbytes, offsets, sizes)
    try:
        return _idle_workspaces.pop()
    except IndexError:
        return new(SHARED_BYTES, dtype=torch.uint8)


def give_back_workspace(workspace: Tensor, nbytes: int) -> None:
    """Keep a workspace that :func:`take_workspace` returned for the next call."""
    if nbytes <= SHARED_BYTES:
        _idle_workspaces.append(workspace)
