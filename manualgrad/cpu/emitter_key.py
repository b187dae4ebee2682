"""A key of everything that kernels' LLVM instructions depend on, found sooner than the instructions themselves.

To emit and print the instructions of all kernels takes longer than to load their object code from the cache. Their
emitters are Python functions, and the key is a hash of what Python runs: the bytecode, constants, defaults and
closures of the kernels' bodies, and all functions, classes and constants of the modules that these come from. It is
read from memory, not from files, so an edit of a file while a program runs changes no key, and a function or constant
that was replaced in memory does.

A value of an unknown kind, or a function of another package, could hide a change. Then there is no key, and the
instructions themselves are the key.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable
from enum import Enum
from types import (
    BuiltinFunctionType,
    CodeType,
    EllipsisType,
    FunctionType,
    GenericAlias,
    ModuleType,
    NoneType,
    UnionType,
)

from llvmlite import ir

from manualgrad.cpu.signature import Kernel

_PACKAGE = __name__.partition(".")[0]
_KNOWN_PACKAGES = {"llvmlite", *sys.stdlib_module_names}  # their versions are in the key
# Their repr is all that there is to them, or names what belongs to Python.
_BY_REPR = (
    NoneType, bool, int, float, complex, str, bytes, EllipsisType, range, Enum, BuiltinFunctionType, GenericAlias,
    UnionType, ir.Type,
)  # fmt: skip
_CODE = (
    "co_name", "co_code", "co_names", "co_varnames", "co_freevars", "co_cellvars", "co_argcount",
    "co_posonlyargcount", "co_kwonlyargcount", "co_flags", "co_exceptiontable", "co_consts",
)  # fmt: skip


class _UnknownError(Exception):
    """A value whose changes the key would not show."""


def emitter_key(kernels: Iterable[Kernel], *modules: ModuleType) -> str | None:
    """Return a key of what ``kernels`` emit and of ``modules``, equal in all processes that run the same code.

    None if a part of that code is not known well enough."""
    walk = _Walk()
    try:
        walk.add([sys.version, *modules, *kernels])
        walk.add_modules()
    except _UnknownError:
        return None
    return walk.hash.hexdigest()


class _Walk:
    """A hash of values and of the modules that they come from, each once."""

    def __init__(self) -> None:
        self.hash = hashlib.sha256()
        self.visited: dict[int, tuple[int, object]] = {}  # number and object by id; a kept object keeps its id
        self.modules: dict[str, ModuleType] = {}

    def add_modules(self) -> None:
        """Add the variables of all modules that came up, and of those that come up there."""
        done = set[str]()
        while names := sorted(self.modules.keys() - done):
            for name in names:
                done.add(name)
                variables = vars(self.modules[name])
                self.add([name, [(variable, variables[variable]) for variable in sorted(_named(variables))]])

    def add(self, value: object) -> None:
        self._feed(type(value).__qualname__)
        if isinstance(value, _BY_REPR):
            self._feed(repr(value) if not isinstance(value, ir.Type) else str(value))
        elif isinstance(value, (tuple, list)):
            self._feed(str(len(value)))
            for item in value:
                self.add(item)
        elif isinstance(value, (set, frozenset)):
            self.add(sorted(map(repr, value)) if all(isinstance(item, _BY_REPR) for item in value) else _raise(value))
        elif isinstance(value, dict):
            self.add(list(value.items()))
        elif id(value) in self.visited:
            self._feed(str(self.visited[id(value)][0]))
        else:
            self.visited[id(value)] = len(self.visited), value
            self._add_code(value)

    def _feed(self, text: str) -> None:
        self.hash.update(f"{len(text)} {text}".encode(errors="surrogatepass"))

    def _add_code(self, value: object) -> None:
        if isinstance(value, CodeType):
            self.add([getattr(value, name, b"") for name in _CODE])
        elif isinstance(value, FunctionType):
            self._add_function(value)
        elif isinstance(value, ModuleType):
            self._add_module(value.__name__)
        elif isinstance(value, type):
            self._add_class(value)
        elif isinstance(value, Kernel):
            self.add([value.name, value.signature.types, value.body])
        elif isinstance(value, property):
            self.add([value.fget, value.fset, value.fdel])
        elif isinstance(value, (staticmethod, classmethod)) or hasattr(value, "cache_info"):
            self.add(value.__wrapped__)  # type: ignore[attr-defined]  # lru_cache's type has it
        elif type(value).__module__ in ("__future__", "typing"):
            self._feed(repr(value))
        else:
            _raise(value)

    def _add_function(self, function: FunctionType) -> None:
        self._feed(function.__qualname__)
        self._add_module(function.__globals__["__name__"])
        self.add(function.__code__)
        if function.__code__.co_filename == "<string>":  # a method that dataclass made from the class's fields
            return
        cells = [cell.cell_contents for cell in function.__closure__ or ()]
        self.add([function.__defaults__, function.__kwdefaults__, cells])

    def _add_class(self, class_: type) -> None:
        self._feed(class_.__qualname__)
        self._add_module(class_.__module__)
        if class_.__module__.partition(".")[0] != _PACKAGE:
            return
        self.add(list(class_.__bases__))
        if issubclass(class_, Enum):
            self.add(list(class_))
            return
        variables = vars(class_)
        self.add([(name, variables[name]) for name in sorted(variables) if not _is_special(name, variables[name])])

    def _add_module(self, name: str) -> None:
        self._feed(name)
        package = name.partition(".")[0]
        if package == _PACKAGE:
            self.modules[name] = sys.modules[name]
        elif package not in _KNOWN_PACKAGES:
            raise _UnknownError(name)


def _named(variables: dict[str, object]) -> list[str]:
    return [name for name in variables if not _is_special(name, None)]


def _is_special(name: str, value: object) -> bool:
    """Return True for what Python adds to modules and classes; operators are special names of functions."""
    return name.startswith("__") and name.endswith("__") and not isinstance(value, FunctionType)


def _raise(value: object) -> object:
    raise _UnknownError(repr(value))
