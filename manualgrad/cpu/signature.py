"""Kernels with arguments that are declared once, by name and type, and bound by keyword.

    @kernel(z=POINTER, out=POINTER, numel=INT, share=INT)
    def relu_forward(emit, a): ...

declares a kernel whose body reads ``a.z``. ``team.run(module, "relu_forward", num_tasks, z=...)`` runs it, and
``module.call("relu_forward", z=...)`` makes a call for a program. A missing, surplus or wrong argument raises there,
before anything runs.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from manualgrad.cpu.ir.vectors import Arguments, Emitter


class ArgumentType(Enum):
    """The type of an argument, with what a caller passes for it."""

    POINTER = "an address or a BufferRef"
    INT = "an integer"
    FLOAT32 = "a number"
    BOOL = "True or False"  # 1 or 0 in the kernel


POINTER, INT, FLOAT32, BOOL = ArgumentType


@dataclass(frozen=True)
class BufferRef:
    """Address that a run of the program provides: ``offset`` bytes into the buffer ``name``."""

    name: str
    offset: int = 0

    def __add__(self, offset: int) -> BufferRef:
        return BufferRef(self.name, self.offset + offset)


Address = int | BufferRef
Word = int | BufferRef  # an argument as a program holds it, in 8 bytes
KernelCall = tuple[int, list[Word]]  # the kernel's address and its arguments
_ACCEPTED = {POINTER: (int, BufferRef), INT: (int,), FLOAT32: (float, int), BOOL: (bool,)}


class Signature:
    """Names and types of a kernel's arguments, in the order in which the kernel reads them."""

    def __init__(self, kernel: str, types: Mapping[str, ArgumentType]) -> None:
        self.kernel, self.types = kernel, dict(types)
        self._floats = [n for n, type_ in enumerate(types.values()) if type_ is FLOAT32]
        self._checked: set[tuple[type, ...]] = set()  # argument types that have passed: a call checks no more

    def encode(self, arguments: Mapping[str, Any]) -> list[Word]:
        """Arrange ``arguments`` as the kernel reads them.

        Raises:
            TypeError: an argument is missing, has another type, or is none of the kernel's.
        """
        try:
            words = [arguments[name] for name in self.types]
        except KeyError:
            self._refuse(arguments)
        kinds = tuple(map(type, words))
        if kinds not in self._checked or len(words) != len(arguments):
            for (name, type_), kind in zip(self.types.items(), kinds, strict=True):
                if kind not in _ACCEPTED[type_]:
                    value = f"{arguments[name]!r} ({kind.__name__})"
                    raise TypeError(f"kernel {self.kernel}: argument {name} must be {type_.value}, got {value}")
            if len(words) != len(arguments):
                self._refuse(arguments)
            self._checked.add(kinds)
        for n in self._floats:
            words[n] = _float_bits(words[n])
        return words

    def _refuse(self, arguments: Mapping[str, Any]) -> NoReturn:
        problems = [f"argument {name} is missing" for name in self.types if name not in arguments]
        problems += [f"there is no argument {name}" for name in arguments if name not in self.types]
        raise TypeError(f"kernel {self.kernel}: {', '.join(problems)}")


def _float_bits(number: float) -> int:
    """Return an integer with the bits of ``number`` as a float32."""
    bits: int = struct.unpack("i", struct.pack("f", number))[0]
    return bits


@dataclass(frozen=True)
class Kernel:
    """A kernel: its signature, and the function that emits its instructions."""

    signature: Signature
    body: Callable[[Emitter, Arguments], None]

    @property
    def name(self) -> str:
        return self.signature.kernel

    def emit(self, emit: Emitter) -> None:
        """Emit the whole kernel."""
        self.body(emit, emit.load_arguments(self.signature.types))
        emit.finish()


def kernel(**types: ArgumentType) -> Callable[[Callable[[Emitter, Arguments], None]], Kernel]:
    """Make a kernel of the decorated function, whose name is the kernel's; the keywords declare the arguments."""
    return lambda body: Kernel(Signature(body.__name__, types), body)
