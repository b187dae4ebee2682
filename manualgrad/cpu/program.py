"""Programs: many kernel calls in one, whose addresses are filled in for each run.

A call into the threads takes some microseconds, and so does the creation of a tensor for each intermediate result. A
program makes one call, and its kernels share one workspace with a buffer for each intermediate result.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from functools import cache
from struct import Struct

import torch
from torch import Tensor

from manualgrad.cpu import memory, team
from manualgrad.cpu.jit import KernelModule
from manualgrad.cpu.signature import BufferRef


@cache
def _float_array(length: int) -> type[ctypes.Array[ctypes.c_float]]:
    """A ctypes type; cached, since creating it takes longer than a small kernel."""
    return ctypes.c_float * length


class WorkspaceLayout:
    """Named buffers in one workspace; each keyword is a buffer's name and its size in bytes."""

    def __init__(self, **sizes: int) -> None:
        self.sizes = sizes
        offsets, self.nbytes = memory.buffer_offsets(tuple(sizes.values()))
        self.offsets = dict(zip(sizes, offsets, strict=True))
        self.buffers = tuple(offsets), tuple(sizes.values())

    def allocate(self) -> Tensor:
        """Return a workspace, (nbytes,) uint8."""
        return memory.new_workspace(self.nbytes, *self.buffers)

    def buffer(
        self, workspace: Tensor, name: str, shape: Sequence[int], dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Return a view of the buffer ``name`` in ``workspace``."""
        start = self.offsets[name]
        return workspace[start : start + self.sizes[name]].view(dtype).view(shape)

    def read_floats(self, workspace: Tensor, name: str) -> list[float]:
        """Return the numbers of the float32 buffer ``name``, sooner than by a view of it."""
        floats = _float_array(self.sizes[name] // 4)
        return floats.from_address(workspace.data_ptr() + self.offsets[name])[:]

    def addresses(self, workspace: Tensor) -> list[int]:
        """Return the addresses of all buffers, in order."""
        start = workspace.data_ptr()
        return [start + offset for offset in self.offsets.values()]


class Program:
    """Parallel regions for ``num_threads`` threads, with arguments that are integers or :class:`BufferRef`.

    ``names`` are the buffers' names, in the order in which :meth:`run` is given their addresses. With ``workspace``
    the address of a workspace of this layout comes after them."""

    def __init__(
        self, module: KernelModule, num_threads: int, regions: Sequence[team.ParallelRegion], names: Sequence[str],
        workspace: WorkspaceLayout | None = None,
    ) -> None:  # fmt: skip
        places = {name: (n, 0) for n, name in enumerate(names)}  # the index of a buffer's address, and an offset
        if workspace is not None:
            places |= {name: (len(names), offset) for name, offset in workspace.offsets.items()}
        self.module, self.num_threads = module, num_threads
        # bytes and addresses in turn: the bytes are copied as they are, and run fills in the addresses
        constants, self._slots = [bytearray()], list[tuple[int, int]]()
        for word in team.encode_regions(regions):
            if isinstance(word, BufferRef):
                index, offset = places[word.name]
                self._slots.append((index, offset + word.offset))
                constants.append(bytearray())
            else:
                constants[-1] += word.to_bytes(8, sys.byteorder, signed=True)
        self._parts: list[bytes | int] = [bytes(constants[0])]
        for integers in constants[1:]:
            self._parts += [0, bytes(integers)]
        self._run_alone = team.program_function(module)
        self._pack = Struct("=" + "q".join(f"{len(integers)}s" for integers in constants)).pack

    def run(self, addresses: Sequence[int]) -> None:
        """Run all regions, on one thread if the process has no team."""
        parts = self._parts.copy()
        parts[1::2] = [addresses[index] + offset for index, offset in self._slots]
        if self.num_threads == 1:
            self._run_alone(team.NO_TEAM + self._pack(*parts))
        else:
            team.run_program(self.module, 1 if team.single_thread_reason() else self.num_threads, self._pack(*parts))

    def run_in_workspace(
        self, layout: WorkspaceLayout, addresses: tuple[int, ...], read: Sequence[str] = ()
    ) -> list[float]:
        """Run all regions with a workspace, whose address comes last; return the floats of its buffers ``read``."""
        workspace = memory.take_workspace(layout.nbytes, *layout.buffers)
        self.run((*addresses, workspace.data_ptr()))
        numbers = [number for name in read for number in layout.read_floats(workspace, name)]
        memory.give_back_workspace(workspace, layout.nbytes)
        return numbers
