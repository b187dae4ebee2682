"""Many kernels in one call: a program whose addresses are filled in each time that it runs.

Handing a kernel to the threads costs some microseconds, and so does each tensor that is made for it. A program hands
all over at once, and what the kernels leave for each other lies in one piece of memory, in parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from manualgrad.cpu import team, workspace
from manualgrad.cpu.jit import KernelModule


@dataclass(frozen=True)
class BufferRef:
    """An address that is known when the program runs: so many bytes into what is called ``name``."""

    name: str
    offset: int = 0

    def __add__(self, offset: int) -> BufferRef:
        return BufferRef(self.name, self.offset + offset)


class WorkspaceLayout:
    """Parts of one piece of memory, each of so many bytes."""

    def __init__(self, **sizes: int) -> None:
        self.sizes = sizes
        offsets, self.bytes = workspace.offsets(tuple(sizes.values()))
        self.offsets = dict(zip(sizes, offsets, strict=True))

    def new(self) -> Tensor:
        """The memory, (bytes,) uint8."""
        return workspace.new_parts(self.bytes, tuple(self.offsets.values()), tuple(self.sizes.values()))

    def part(self, piece: Tensor, name: str, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """A part, as what it holds."""
        start = self.offsets[name]
        return piece[start : start + self.sizes[name]].view(dtype).view(shape)

    def addresses(self, piece: Tensor) -> list[int]:
        """Of the parts, in order."""
        start = piece.data_ptr()
        return [start + offset for offset in self.offsets.values()]


class Program:
    """Stages (see ``team.py``) for so many threads, whose arguments are numbers and :class:`BufferRef`; the addresses
    will come in the order of ``names``."""

    def __init__(
        self, code: KernelModule, threads: int, stages: Sequence[team.ParallelRegion], names: Sequence[str]
    ) -> None:
        words = team.encode_regions(stages)
        place = {name: n for n, name in enumerate(names, start=1)}  # 0 is where numbers that are no addresses begin
        self.code, self.threads = code, threads
        self._fixed = np.array(
            [word.offset if isinstance(word, BufferRef) else word for word in words], dtype=np.int64
        )
        self._from = np.array([place[word.name] if isinstance(word, BufferRef) else 0 for word in words])

    def run(self, addresses: Sequence[int]) -> None:
        """All of it; on one thread where others cannot be had."""
        block = self._fixed + np.array((0, *addresses), dtype=np.int64)[self._from]
        team.run_block(self.code, 1 if team.single_thread_reason() else self.threads, block.tobytes())
