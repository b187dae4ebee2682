"""The kernels for CUDA on a GPU, or interpreted by Triton on the CPU (see ``tests/conftest.py``)."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from manualgrad import dispatch
from manualgrad.cuda.launch import CUDA, Launcher
from manualgrad.dispatch import Backend, registered

triton = pytest.importorskip("triton", reason="kernels for CUDA are written in Triton")


@triton.jit
def add_up(x, N):
    for n in range(N):
        triton.language.store(x, triton.language.load(x) + n)


def speed_up_interpreter() -> None:
    """Let Triton's interpreter compute each index once, and look once at what it always looks up again.

    By default it computes every sum and product again in 64 bits, to check it for overflow, and makes no use of the
    check unless it debugs. That takes nearly half of its time. In each call of a kernel or of one of its functions it
    goes through all names of Triton's language for those to replace: a quarter of the rest."""
    from triton.runtime import interpreter

    options = interpreter.interpreter_builder.options
    if not options.debug and hasattr(options, "sanitize_overflow"):
        interpreter.interpreter_builder.options = replace(options, sanitize_overflow=False)

    @functools.cache
    def builtins(package: Any) -> list[tuple[str, Any]]:
        return [pair for pair in inspect.getmembers(package) if triton.language.core.is_builtin(pair[1])]

    def patch_builtin(package: Any, builder: Any, *scope: Any) -> None:
        name, member = builtins(package)[0]
        if getattr(package, name) is member:  # otherwise all of them are replaced already
            for name, member in builtins(package):
                interpreter._patch_attr(package, name, member, builder, *scope)

    np_dtype = interpreter._get_np_dtype
    np_dtype_of_number = functools.cache(np_dtype)

    def get_np_dtype(dtype: Any) -> np.dtype:
        is_pointer = isinstance(dtype.scalar, triton.language.pointer_type)
        return np_dtype(dtype) if is_pointer else np_dtype_of_number(dtype.scalar)

    interpreter._patch_builtin = patch_builtin
    interpreter._get_np_dtype = get_np_dtype


if not torch.cuda.is_available():
    speed_up_interpreter()


@functools.cache
def why_not_interpreted() -> str:
    """The reason why Triton's interpreter cannot run kernels here, "" if it can or if there is a GPU.

    That of Triton 3.6, of PyTorch 2.11, passes arrays of one number to int(), an error from NumPy 2.4 on."""
    if torch.cuda.is_available():
        return ""
    try:
        add_up[(1,)](torch.zeros(1), 2)
    except triton.runtime.errors.InterpreterError as error:
        if "only 0-dimensional arrays can be converted" not in str(error):
            raise
        return f"Triton {triton.__version__} cannot interpret a loop with NumPy {np.__version__}"
    return ""


class CountingLauncher(Launcher):
    """A launcher that notes the names of the kernels that it launches."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, kernel, grid, x, *args, **constants) -> None:
        if 0 not in grid:
            self.names.append(kernel.fn.__name__)
        super().__call__(kernel, grid, x, *args, **constants)


@pytest.fixture
def launches() -> list[str]:
    """The names of the kernels launched by the test, in order. Requested together with ``kernel_device``."""
    return []


@pytest.fixture
def kernel_device(launches: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The device on whose tensors the kernels for CUDA run inside the test: "cuda", or "cpu" for the interpreter.

    It has no other kernels then: the CPU's are not registered in the test. TF32 is off."""
    from manualgrad.cuda.registration import KERNELS

    if reason := why_not_interpreted():
        pytest.skip(reason)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dispatch.find_kernel("relu_backward", device)  # loads the table
    others = {key: kernel for key, kernel in dispatch._kernels.items() if key[1] != device}
    monkeypatch.setattr(dispatch, "_kernels", others)
    launcher = CountingLauncher()
    launcher.names = launches
    backend = Backend(device, lambda: launcher if CUDA.current_module() else None, CUDA.why_none)
    precision = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    with ExitStack() as stack, np.errstate(all="ignore"):  # the interpreter computes with NumPy, which would warn
        for kernel in KERNELS:
            stack.enter_context(registered(replace(kernel, backend=backend)))
        yield device
    torch.backends.cudnn.conv.fp32_precision = precision
