"""Launches of CUDA kernels with buffers by name, and programs of them.

Calls of ``backward`` and of ``reduce`` that stand one behind the other run side by side in one launch: these kernels
have arguments for several layers, and no layer's programs read what another's write.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from manualgrad.cpu.signature import BufferRef
from manualgrad.cuda.launch import Launcher

OPTIONS = ("num_warps", "num_stages")
N = BufferRef("N")  # the number of images
NUMBERS = ("N", "factor")  # what a run knows and is no tensor


@dataclass(frozen=True)
class Launch:
    """A launch of ``kernel`` on a grid of ``programs``; tensors are BufferRefs, and so is what only a run knows."""

    kernel: Any
    programs: tuple[int, ...]
    arguments: Mapping[str, Any]

    def beside(self, other: Launch) -> Launch | None:
        """The programs of both in one launch, or None if the kernel has no arguments for that."""
        if self.kernel is not other.kernel or not any(name.endswith("PROGRAMS") for name in self.arguments):
            return None
        theirs = dict(other.arguments)
        if "PROGRAMS" in theirs and "PROGRAMS" in self.arguments:  # a second layer for ``reduce``
            names = _parameters(self.kernel)
            theirs = {_other(name) if _other(name) in names else name: value for name, value in theirs.items()}
        common = self.arguments.keys() & theirs.keys()
        if any(name.endswith("PROGRAMS") or self.arguments[name] != theirs[name] for name in common):
            return None
        return Launch(self.kernel, (self.programs[0] + other.programs[0],), {**self.arguments, **theirs})


def _parameters(kernel: Any) -> dict[str, bool]:
    """The names of a kernel's parameters, with True for those that it is compiled for."""
    parameters = inspect.signature(kernel.fn).parameters.values()
    return {p.name: "constexpr" in str(p.annotation) for p in parameters}


def _other(name: str) -> str:
    return f"OTHER_{name}" if name.isupper() else f"other_{name}"


def side_by_side(launches: Iterable[Launch]) -> list[Launch]:
    """The launches, with neighbours in one where the kernel allows it."""
    result: list[Launch] = []
    for launch in launches:
        both = result[-1].beside(launch) if result else None
        result[-1:] = [both] if both else [*result[-1:], launch]
    return result


class CUDAProgram:
    """Launches in order."""

    def __init__(self, launches: Iterable[Launch]) -> None:
        self._calls = [_call(launch) for launch in side_by_side(launches)]

    def run(self, launcher: Launcher, values: Mapping[str, Tensor | float]) -> None:
        """Launch all kernels. ``values`` are the tensors and numbers of each name."""
        for kernel, programs, arguments, constants in self._calls:
            actual: list[Any] = [values[a.name] if isinstance(a, BufferRef) else a for a in arguments]
            launcher(kernel, programs, *actual, **constants)


def _call(launch: Launch) -> tuple[Any, tuple[int, ...], list[Any], dict[str, Any]]:
    """Kernel, programs, positional arguments and constants. Arguments that no program reads get any tensor or 0."""
    arguments, is_constant = launch.arguments, _parameters(launch.kernel)
    unknown = arguments.keys() - {*is_constant, *OPTIONS}
    if unknown:
        raise TypeError(f"{launch.kernel.fn.__name__} has no arguments {', '.join(sorted(unknown))}")
    any_tensor = next(v for v in arguments.values() if isinstance(v, BufferRef) and v.name not in NUMBERS)
    positional = [arguments.get(name, any_tensor) for name in is_constant if not is_constant[name]]
    constants = {name: arguments.get(name, 0) for name in is_constant if is_constant[name]}
    constants |= {name: arguments[name] for name in OPTIONS if name in arguments}
    return launch.kernel, launch.programs, positional, constants


class Workspace:
    """Buffers in one tensor; ``sizes`` are their names and bytes."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self.names = list(sizes)
        self._numels = [-(-nbytes // 256) * 64 for nbytes in sizes.values()]  # multiples of 256 bytes
        self.shape = torch.Size((sum(self._numels),))

    def allocate(self, x: Tensor) -> Tensor:
        """Memory for all buffers on the device of ``x``."""
        return x.new_empty(self.shape, dtype=torch.float32)

    def buffers(self, memory: Tensor) -> dict[str, Tensor]:
        """Each buffer as a flat view of ``memory``."""
        views = torch.split_with_sizes(memory, self._numels)
        return {name: view.view(_dtype(name)) for name, view in zip(self.names, views, strict=True)}

    def buffer(self, memory: Tensor, name: str, shape: Sequence[int]) -> Tensor:
        """The buffer ``name`` in its shape."""
        return self.buffers(memory)[name][: prod(shape)].view(tuple(shape))


def _dtype(name: str) -> torch.dtype:
    if name.startswith(("pool_index", "relu_index")):
        return torch.uint8
    return torch.int32 if name == "num_labels" else torch.float32
