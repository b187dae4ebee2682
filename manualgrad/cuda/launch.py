"""The CUDA backend: whether Triton's kernels can run, and their launch.

With the environment variable TRITON_INTERPRET=1 Triton interprets its kernels on the CPU, which takes no GPU: the
tests run them so. Kernels then take tensors of the CPU.
"""

from __future__ import annotations

import functools
import os
import subprocess
from typing import Any

import torch
from torch import Tensor

from manualgrad._torch_compat import assume_constant_result
from manualgrad.cpu import instruction_set
from manualgrad.dispatch import Backend

MIN_CAPABILITY = (8, 0)  # the first with TF32 and bfloat16 in tensor cores, and asynchronous copies
MAX_GRID = 65535  # programs in the second and in the third dimension of a launch, on every GPU


class Launcher:
    """Launches kernels, on the device of their tensors and its current stream.

    A first argument of every ``FormulaKernel.run`` for CUDA. A test can pass one that counts launches."""

    def __call__(self, kernel: Any, grid: tuple[int, ...], x: Tensor, *args: Any, **constants: Any) -> None:
        """Launch ``kernel[grid](x, *args, **constants)``; does nothing if the grid is empty."""
        if 0 in grid:
            return
        if x.is_cuda and x.device.index != torch.cuda.current_device():
            with torch.cuda.device(x.device):
                kernel[grid](x, *args, **constants)
        else:
            kernel[grid](x, *args, **constants)


_launcher = Launcher()


@functools.cache
def why_not_installed() -> str:
    """Return the reason why Triton's kernels cannot run in this installation, "" if they can."""
    if torch.version.hip is not None:
        return "the kernels for CUDA were made for NVIDIA's GPUs"
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"Triton cannot be imported ({error})"
    return ""


def current_launcher() -> Launcher | None:
    """Return what launches kernels, or None if formulas compute everything."""
    return None if why_none() else _launcher


def why_none() -> str:
    """Return the reason why :func:`current_launcher` returns None, "" if it does not."""
    return "kernels are switched off" if instruction_set.switched_off() else why_not_installed()


@assume_constant_result
def interprets() -> bool:
    """Return True if Triton interprets kernels on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


@assume_constant_result
def unsupported_device(index: int) -> str:
    """Return the reason why kernels do not support the GPU of this index, "" if they do."""
    capability = _capability(index)
    if capability < MIN_CAPABILITY:
        return f"the GPU has compute capability {capability[0]}.{capability[1]}, kernels need 8.0"
    return _why_no_driver()


@functools.cache
def _why_no_driver() -> str:
    """Return the reason why Triton cannot launch kernels on this machine, "" if it can.

    Triton builds a module for that where it runs first, which takes a C compiler and the headers of Python."""
    import triton

    try:
        triton.runtime.driver.active  # noqa: B018  # builds and loads the module
    except (RuntimeError, AssertionError, ImportError, OSError, subprocess.CalledProcessError) as error:
        return f"Triton cannot build or load the module that launches kernels ({error})"
    return ""


@functools.cache
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


def describe() -> str:
    """The kernels for CUDA in use, or the reason why formulas compute everything there."""
    if not torch.cuda.is_available():
        return "no kernels: PyTorch finds no CUDA device"
    reason = why_none()
    if not reason:
        reasons = [unsupported_device(n) for n in range(torch.cuda.device_count())]
        reason = "" if "" in reasons else reasons[0]
    if reason:
        return f"no kernels, formulas compute everything: {reason}"
    return f"kernels in Triton {_triton_version()}"


def _triton_version() -> str:
    import triton

    return str(triton.__version__)


CUDA = Backend("cuda", current_launcher, why_none)
