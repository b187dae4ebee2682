"""Functions that do more than compute: edited ones would write other files, or leave other numbers behind."""

from __future__ import annotations

import ast
import dis
from collections.abc import Iterator, Sequence
from types import CodeType, FunctionType, ModuleType
from typing import Any

from torch import nn

from compare.gradients.source_changes.called_functions import CalledFunction, is_users

# Modules for files, processes and networks; a function that names one may do anything with them.
MODULES = {
    "os", "shutil", "subprocess", "socket", "tempfile", "pathlib", "ctypes", "pickle", "urllib", "http", "requests",
    "sqlite3", "h5py", "matplotlib", "pandas", "PIL", "wandb", "multiprocessing", "threading", "tensorboard",
}  # fmt: skip
# Modules that call machine code with addresses. An edit could hand it a tensor of another size, and end the process.
WITH_ADDRESSES = {"ctypes", "_ctypes", "cffi", "numba", "cupy", "triton", "llvmlite", "cpp_extension", "mmap"}
# Functions that open or write files, start programs, or set what later calls of any function depend on.
FUNCTIONS = {
    "open", "exec", "eval", "input", "setattr", "globals", "save", "savez", "savez_compressed", "savetxt", "savefig",
    "tofile", "memmap", "dump", "write", "writelines", "write_text", "write_bytes", "touch", "unlink", "mkdir",
    "rename", "system", "popen", "to_csv", "add_scalar", "add_histogram", "set_default_dtype", "set_default_device",
    "set_num_threads", "set_num_interop_threads", "set_printoptions", "set_rng_state", "set_flush_denormal",
    "use_deterministic_algorithms", "set_float32_matmul_precision", "manual_seed", "seed", "seterr", "share_memory_",
    "all_reduce", "all_gather", "broadcast_object_list", "barrier", "data_ptr", "ops",
}  # fmt: skip


def has_outside_effects(called: CalledFunction) -> bool:
    """True if a function names what opens files, starts programs or sets global state, or assigns global names.

    Functions of the user that it names count too: an edited condition may call one that did not run before.
    """
    functions = _named_functions(called.functions)
    scopes = {id(function.__globals__): function.__globals__ for function in functions}
    return any(map(_has_effects, functions)) or any(_uses_addresses(scope, set()) for scope in scopes.values())


def _uses_addresses(scope: dict[str, Any], known: set[int]) -> bool:
    """True if a module, or one of the user's that it imports, has one of :data:`WITH_ADDRESSES`.

    A function may call machine code in one dtype alone, so that it has not run yet.
    """
    known.add(id(scope))
    for value in list(scope.values()):
        if _module_of(value) in WITH_ADDRESSES or getattr(value, "__name__", "") == "torch.utils.cpp_extension":
            return True
        inner = None
        if isinstance(value, ModuleType) and is_users(getattr(value, "__file__", None) or ""):
            inner = vars(value)
        elif isinstance(value, FunctionType) and is_users(value.__code__.co_filename):
            inner = value.__globals__
        if inner is not None and id(inner) not in known and _uses_addresses(inner, known):
            return True
    return False


def _has_effects(function: FunctionType) -> bool:
    scope = function.__globals__
    for code in _with_inner(function.__code__):
        names = set(code.co_names)
        if names & FUNCTIONS or names & MODULES or any(_module_of(scope.get(name)) in MODULES for name in names):
            return True
        if any(instruction.opname in ("STORE_GLOBAL", "DELETE_GLOBAL") for instruction in dis.get_instructions(code)):
            return True
    return False


def _named_functions(functions: Sequence[FunctionType]) -> list[FunctionType]:
    """The functions, and those of the user that these name, and so on; methods are not known by their names."""
    known = dict.fromkeys(functions)
    todo = list(functions)
    while todo:
        function = todo.pop()
        names = [name for code in _with_inner(function.__code__) for name in code.co_names]
        for name in names:
            value = function.__globals__.get(name)
            if isinstance(value, FunctionType) and value not in known and is_users(value.__code__.co_filename):
                known[value] = None
                todo.append(value)
    return list(known)


def stores_outside(node: ast.AST, called: CalledFunction) -> bool:
    """True if a function assigns attributes or elements of a global object, or of a module of a network."""
    for part in ast.walk(node):
        if isinstance(part, (ast.Attribute, ast.Subscript)) and isinstance(part.ctx, (ast.Store, ast.Del)):
            root: ast.expr = part
            while isinstance(root, (ast.Attribute, ast.Subscript)):
                root = root.value
            if not isinstance(root, ast.Name):
                continue
            value = called.local_values.get(root.id)
            is_global = root.id not in called.code.co_varnames and root.id in called.functions[0].__globals__
            if is_global or isinstance(value, (nn.Module, type)):
                return True
    return False


def _with_inner(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _with_inner(constant)


def _module_of(value: object) -> str:
    """The top package of a module, or of the class or function that an object is or has."""
    if isinstance(value, ModuleType):
        return value.__name__.split(".")[0]
    return str(getattr(value, "__module__", "")).split(".")[0]
