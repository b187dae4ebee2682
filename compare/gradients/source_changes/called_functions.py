"""The Python functions that a run of a function calls, and the local values that each of them had."""

from __future__ import annotations

import gc
import math
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

import manualgrad

STANDARD_LIBRARY = sysconfig.get_path("stdlib")
TORCH = str(Path(torch.__file__).parent)
OURS = (str(Path(__file__).parents[2]), str(Path(manualgrad.__file__).parent))
BACKWARD_CALL = (str(Path(TORCH, "autograd", "__init__.py")), "grad")


@dataclass
class CalledFunction:
    """A Python function of the user that ran.

    Attributes:
        functions: every function object with this code, such as the closures that one ``def`` made.
        in_backward: True if backward called it first.
        local_values: the values that its names had where its last call returned.
        constants: the numbers among the global names of the user's functions.
        global_tensors: the tensors among them.
        inner: the local values of the functions that it defines, by name and first line.
    """

    code: CodeType
    functions: list[FunctionType]
    in_backward: bool
    local_values: dict[str, Any] = field(default_factory=dict)
    constants: dict[str, float] = field(default_factory=dict)
    global_tensors: dict[str, Tensor] = field(default_factory=dict)
    inner: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    _within: dict[tuple[str, int], CalledFunction] = field(default_factory=dict, repr=False)

    def within(self, name: str, line: int) -> CalledFunction:
        """This function with the local values of one that it defines, as far as that ran."""
        key = (name, line)
        if key not in self.inner:
            return self
        if key not in self._within:
            self._within[key] = replace(self, local_values=self.local_values | self.inner[key], _within={})
        return self._within[key]

    @cached_property
    def values(self) -> dict[str, Any]:
        """Local values, and those that ctx has, such as "ctx.scale"."""
        contexts = {name: vars(value) for name, value in self.local_values.items() if isinstance(value, FunctionCtx)}
        kept = {f"{name}.{key}": value for name, known in contexts.items() for key, value in known.items()}
        return {
            name: value for name, value in self.local_values.items() if name.isidentifier() and name != "_"
        } | kept

    @cached_property
    def incoming_names(self) -> frozenset[str]:
        """Names of the incoming gradients, if this is the backward of a Function."""
        first, *others = self.code.co_varnames[: self.code.co_argcount] or [""]
        is_backward = self.in_backward and isinstance(self.local_values.get(first), FunctionCtx)
        return frozenset(others if is_backward else ())

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Tensors among the values, but for empty ones."""
        return {name: v for name, v in self.values.items() if isinstance(v, Tensor) and v.numel()}

    @cached_property
    def numbers(self) -> dict[str, float]:
        """Numbers among the values, and global ones."""
        return {name: v for name, v in self.values.items() if is_number(v)} | self.constants


def is_number(value: Any) -> bool:
    """True for a finite number that is no truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def find_called_functions(run: Callable[[], Any]) -> tuple[list[CalledFunction], int]:
    """Call ``run``; return the user's functions that it called, those of backward first, and the number of all calls.

    There are none where another profiler is at work, since two exclude each other.
    """
    if sys.getprofile() is not None:
        return [], 0
    local_values: dict[CodeType, dict[str, Any]] = {}
    in_backward: dict[CodeType, bool] = {}
    from_user: dict[str, bool] = {}
    num_calls = 0

    def note(frame: FrameType, event: str, arg: Any) -> None:
        nonlocal num_calls
        num_calls += 1
        file = frame.f_code.co_filename
        if event in ("call", "return") and from_user.setdefault(file, is_users(file)):
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
    inner = {code: [c for c in with_inner(code) if c is not code] for code in functions}
    all_inner = {each for codes in inner.values() for each in codes}
    global_values = {
        name: objects[0].__globals__[name]
        for code, objects in functions.items()
        for name in code.co_names
        if objects and name in objects[0].__globals__
    }
    constants = {name: value for name, value in global_values.items() if is_number(value)}
    global_tensors = {name: value for name, value in global_values.items() if isinstance(value, Tensor)}
    called = [
        CalledFunction(
            code,
            objects,
            in_backward[code],
            local_values.get(code, {}),
            constants,
            global_tensors,
            {(c.co_name, c.co_firstlineno): local_values[c] for c in inner[code] if c in local_values},
        )
        for code, objects in functions.items()
        if objects and code not in all_inner  # an inner function is part of its outer one
    ]
    return sorted(called, key=lambda each: not each.in_backward), num_calls


def with_inner(code: CodeType) -> Iterator[CodeType]:
    """A code and those of the functions that it defines."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from with_inner(constant)


def is_users(file: str) -> bool:
    """True for a file of the user's: none of the standard library's, of an installed library's, or of ours.

    manualgrad's functions check their arguments and hand addresses of tensors to machine code; edited, they may not.
    """
    if not file or file.startswith(("<frozen", "<string>", TORCH, *OURS)):
        return False
    if {"site-packages", "dist-packages"} & set(Path(file).parts):  # installed libraries
        return False
    return not file.startswith(STANDARD_LIBRARY)


def _is_in_backward(frame: FrameType | None) -> bool:
    while frame is not None:
        if (frame.f_code.co_filename, frame.f_code.co_name) == BACKWARD_CALL:
            return True
        frame = frame.f_back
    return False
