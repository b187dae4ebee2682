"""The Python functions that a run of a function calls, and the local values that each of them had."""

from __future__ import annotations

import gc
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

import torch
from torch import Tensor

STANDARD_LIBRARY = sysconfig.get_path("stdlib")
TORCH = str(Path(torch.__file__).parent)
COMPARE = str(Path(__file__).parents[1])
BACKWARD_CALL = (str(Path(TORCH, "autograd", "__init__.py")), "grad")
LIBRARIES = {"numpy", "scipy", "sympy", "triton", "pytest", "_pytest", "pluggy"}  # with torch, their code is no user's


@dataclass
class CalledFunction:
    """A Python function of the user that ran.

    Attributes:
        functions: every function object with this code, such as the closures that one ``def`` made.
        in_backward: True if backward called it first.
        local_values: the values that its names had where it returned, of its last call.
    """

    code: CodeType
    functions: list[FunctionType]
    in_backward: bool
    local_values: dict[str, Any] = field(default_factory=dict)

    def tensor_names(self) -> list[str]:
        """Names of local tensors that are not empty."""
        return [name for name, value in self.local_values.items() if isinstance(value, Tensor) and value.numel()]

    def number_names(self) -> list[str]:
        """Names of local numbers."""
        return [
            name
            for name, value in self.local_values.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        ]


def find_called_functions(run: Callable[[], Any]) -> tuple[list[CalledFunction], int]:
    """Call ``run``; return the user's functions that it called, those of backward first, and the number of all calls.

    Where another profiler is at work, there are none: two profilers exclude each other.
    """
    if sys.getprofile() is not None:
        return [], 0
    local_values: dict[CodeType, dict[str, Any]] = {}
    in_backward: dict[CodeType, bool] = {}
    is_users: dict[str, bool] = {}
    num_calls = 0

    def note(frame: FrameType, event: str, arg: Any) -> None:
        nonlocal num_calls
        num_calls += 1
        if event not in ("call", "return"):
            return
        file = frame.f_code.co_filename
        if file not in is_users:
            is_users[file] = _is_users(file)
        if not is_users[file]:
            return
        if event == "call":
            in_backward.setdefault(frame.f_code, _is_in_backward(frame))
        else:
            local_values[frame.f_code] = dict(frame.f_locals)

    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
    functions: dict[CodeType, list[FunctionType]] = {code: [] for code in in_backward}
    for function in gc.get_referrers(*functions) if functions else []:
        if isinstance(function, FunctionType) and function.__code__ in functions:
            functions[function.__code__].append(function)
    inner = {const for code in functions for const in code.co_consts if isinstance(const, CodeType)}
    called = [
        CalledFunction(code, found, in_backward[code], local_values.get(code, {}))
        for code, found in functions.items()
        if found and code not in inner  # an inner function is part of its outer one
    ]
    return sorted(called, key=lambda each: not each.in_backward), num_calls


def _is_users(file: str) -> bool:
    if file.startswith(("<frozen", TORCH, COMPARE)) or not file:
        return False
    parts = Path(file).parts
    if "site-packages" in parts or "dist-packages" in parts:
        return not LIBRARIES & set(parts)
    return not file.startswith(STANDARD_LIBRARY)


def _is_in_backward(frame: FrameType | None) -> bool:
    while frame is not None:
        if (frame.f_code.co_filename, frame.f_code.co_name) == BACKWARD_CALL:
            return True
        frame = frame.f_back
    return False
