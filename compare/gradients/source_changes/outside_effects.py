"""Functions that do more than compute: edited ones would write other files, or change what cannot be restored."""

from __future__ import annotations

import ast
import dis
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from torch import nn

from compare.gradients.source_changes.called_functions import CalledFunction, is_users, with_inner
from compare.gradients.source_changes.saved_values import SavedValues

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
    "use_deterministic_algorithms", "set_float32_matmul_precision", "seterr", "share_memory_",
    "all_reduce", "all_gather", "broadcast_object_list", "barrier", "data_ptr", "ops",
}  # fmt: skip


SEEDS = {"manual_seed", "seed"}
# Bytecode before the method of a local object or of the result of a call, such as torch.Generator().manual_seed(0).
OF_OWN_OBJECT = ("LOAD_FAST", "STORE_FAST_LOAD_FAST", "CALL")


def outside_effect(called: CalledFunction) -> str:
    """Words for an effect that is no computation: files, programs, global state, addresses; "" without one.

    Functions of the user that it names count too: an edited condition may call one that did not run before.
    """
    functions = _named_functions(called.functions)
    for function in functions:
        if word := _effect_of(function):
            return f"{in_words(function.__code__)} uses `{word}`, and an edited run may do more than compute"
    for scope in {id(function.__globals__): function.__globals__ for function in functions}.values():
        if module := _module_with_addresses(scope, set()):
            return f"{_file_of(scope)} uses {module}, and may hand addresses of tensors to machine code"
    return ""


def in_words(code: CodeType) -> str:
    """Name and line of a function."""
    return f"`{code.co_name}` in line {code.co_firstlineno} of {Path(code.co_filename).name}"


def _file_of(scope: dict[str, Any]) -> str:
    return Path(scope.get("__file__") or "the module").name


def _module_with_addresses(scope: dict[str, Any], known: set[int]) -> str:
    """The one of :data:`WITH_ADDRESSES` that a module, or one of the user's that it imports, has; "" without one.

    A function may call machine code in one dtype alone, so that it has not run yet.
    """
    known.add(id(scope))
    for value in list(scope.values()):
        if _module_of(value) in WITH_ADDRESSES:
            return _module_of(value)
        if getattr(value, "__name__", "") == "torch.utils.cpp_extension":
            return "torch.utils.cpp_extension"
        inner = None
        if isinstance(value, ModuleType) and is_users(getattr(value, "__file__", None) or ""):
            inner = vars(value)
        elif isinstance(value, FunctionType) and is_users(value.__code__.co_filename):
            inner = value.__globals__
        if inner is not None and id(inner) not in known and (module := _module_with_addresses(inner, known)):
            return module
    return ""


def _effect_of(function: FunctionType) -> str:
    """The name by which a function may do more than compute, or ""."""
    scope = function.__globals__
    for code in with_inner(function.__code__):
        for name in code.co_names:
            if name in FUNCTIONS or name in MODULES or _module_of(scope.get(name)) in MODULES:
                return name
        instructions = list(dis.get_instructions(code))
        for before, each in pairwise(instructions):
            if each.argval in SEEDS and not before.opname.startswith(OF_OWN_OBJECT):
                return str(each.argval)
    return ""


def _named_functions(functions: Sequence[FunctionType]) -> list[FunctionType]:
    """The functions, and those of the user that these name, and so on; methods are not known by their names."""
    known = dict.fromkeys(functions)
    todo = list(functions)
    while todo:
        function = todo.pop()
        names = [name for code in with_inner(function.__code__) for name in code.co_names]
        for name in names:
            value = function.__globals__.get(name)
            if isinstance(value, FunctionType) and value not in known and is_users(value.__code__.co_filename):
                known[value] = None
                todo.append(value)
    return list(known)


def changed_object(node: ast.AST, called: CalledFunction, saved: SavedValues) -> str:
    """The name of a global object, or of a module of a network, that a function changes and that is not restored.

    Attributes and elements that are assigned count.
    """
    for part in ast.walk(node):
        if isinstance(part, (ast.Attribute, ast.Subscript)) and isinstance(part.ctx, (ast.Store, ast.Del)):
            root: ast.expr = part
            while isinstance(root, (ast.Attribute, ast.Subscript)):
                root = root.value
            if not isinstance(root, ast.Name):
                continue
            scope = called.functions[0].__globals__
            is_global = root.id not in called.code.co_varnames and root.id in scope
            value = scope[root.id] if is_global else called.local_values.get(root.id)
            if (is_global or isinstance(value, (nn.Module, type))) and not saved.covers(value):
                return root.id
    return ""


def _module_of(value: object) -> str:
    """The top package of a module, or of the class or function that an object is or has."""
    if isinstance(value, ModuleType):
        return value.__name__.split(".")[0]
    return str(getattr(value, "__module__", "")).split(".")[0]
