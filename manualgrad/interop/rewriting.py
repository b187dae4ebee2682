"""Functions rewritten so that each call of a native function that manualgrad has is a call of ours.

The syntax tree changes in these calls only: ``F.relu(x)`` becomes ``replacement_of(F.relu)(x)``. Everything else runs
as it was written, so each call decides anew about branches, options, modes and random numbers. Functions that the
rewritten one calls are rewritten too, if they belong to the model's code and not to a library.
"""

from __future__ import annotations

import ast
import builtins
import copy
import functools
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import CellType, FunctionType, ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from manualgrad.interop.native_calls import (
    FUNCTION_TYPES,
    FUNCTIONS,
    METHODS,
    is_replaceable,
    replacement_of,
    replacement_of_method,
    set_replacement,
)
from manualgrad.interop.report import NO_SUCH_FUNCTION
from manualgrad.interop.source_code import (
    SourceUnavailable,
    copy_function,
    find_definition,
    make_function,
    nested_codes,
)

LIBRARIES = {"torch", "manualgrad", "numpy", *sys.stdlib_module_names}
RUNTIME = {"_manualgrad_replacement_of": replacement_of, "_manualgrad_method": replacement_of_method}
REPLACEMENT_OF, REPLACEMENT_OF_METHOD = RUNTIME
NATIVE_FUNCTIONS = {
    id(value): name
    for name, value in vars(F).items()
    if isinstance(value, FUNCTION_TYPES) and name[0] != "_" and value.__module__ != "torch.overrides"
}
NAMES = {name.rpartition(".")[2] for name, _ in FUNCTIONS.values()} | {"max_pool2d_with_indices"}
UNKNOWN, SELF, LOCAL = object(), object(), object()  # a value that only the call knows; ``self``; a local variable


@dataclass
class Calls:
    """Calls in a function and in the functions that it calls.

    Attributes:
        replaced: (name of the native function, name of ours); the values are not used.
        left: name of a function that stays native, and why.
        unreadable: name of a function that cannot be rewritten although its names include those of native functions
            that manualgrad has, and why.
        super_methods: name of an attribute of the subclass with rewritten methods, and the rewritten method of a
            base class that it holds, which ``super()`` would not find.
    """

    replaced: dict[tuple[str, str], None] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    super_methods: dict[str, FunctionType] = field(default_factory=dict)

    def update(self, other: Calls) -> None:
        for name in vars(self):
            getattr(self, name).update(getattr(other, name))


@dataclass(frozen=True)
class Owner:
    """The class whose methods are rewritten.

    Attributes:
        kind: the class of a module.
        functions: the functions among the attributes of a module's instance, such as ``self.activation``, and a
            tuple of functions for each list, tuple or dict that holds some.
    """

    kind: type
    functions: Mapping[str, Any]


def is_library(value: FunctionType | type) -> bool:
    """Return True for a function or class of a library, whose calls stay as they are."""
    return (value.__module__ or "").partition(".")[0] in LIBRARIES


def is_model_code(value: Any) -> bool:
    """Return True for a Python function that belongs to no such library."""
    return isinstance(value, FunctionType) and not is_library(value)


def rewrite(function: FunctionType, owner: Owner | None = None) -> tuple[FunctionType | None, Calls]:
    """Rewrite ``function``, a method of ``owner`` or any other function.

    Returns:
        (the rewritten function, or None if nothing was replaced; the calls).
    """
    calls = Calls()
    wrapped = getattr(function, "__wrapped__", None)
    if isinstance(wrapped, FunctionType) and wrapped.__code__ is not function.__code__:
        return _rewrite_decorated(function, wrapped, owner)
    if not is_model_code(function) or not _may_call(function, owner, set()):
        return None, calls
    try:
        definition = find_definition(function)
    except SourceUnavailable as error:
        if NAMES & {name for code in nested_codes(function.__code__) for name in code.co_names}:
            calls.unreadable[function.__name__] = str(error)
        return None, calls
    rewriter = _Rewriter(function, owner, calls)
    node = rewriter.rewrite(copy.deepcopy(definition.node))
    if not rewriter.is_changed:
        return None, calls
    names = {name: value for name, value in RUNTIME.items() if name in rewriter.used_names}
    return make_function(function, replace(definition, node=node), names), calls


def _rewrite_decorated(
    function: FunctionType, wrapped: FunctionType, owner: Owner | None
) -> tuple[FunctionType | None, Calls]:
    """Rewrite the function inside of a decorator's wrapper, as ``torch.no_grad()`` makes one around a forward."""
    inner, calls = rewrite(wrapped, owner)
    if inner is None:
        return None, calls
    cells = function.__closure__ or ()
    is_inside = [_content(cell) is wrapped for cell in cells]
    if not any(is_inside):
        decorated = Calls(unreadable={function.__name__: "a decorator hides the function, so it cannot be rewritten"})
        return None, decorated
    closure = tuple(CellType(inner) if inside else cell for inside, cell in zip(is_inside, cells, strict=True))
    return copy_function(function, function.__code__, closure), calls


# Functions called by rewritten functions: their calls, and whether there is a replacement. A function that calls
# itself is found here while it is rewritten.
_called_functions: dict[FunctionType, tuple[bool, Calls]] = {}


def _rewrite_called(function: FunctionType) -> tuple[bool, Calls]:
    """Rewrite a function that a rewritten function calls; return (True if it has a replacement, its calls)."""
    if function not in _called_functions:
        _called_functions[function] = True, Calls()
        new, calls = rewrite(function)
        if new is not None:
            set_replacement(function, new)
        _called_functions[function] = new is not None, calls
    return _called_functions[function]


class _Rewriter(ast.NodeTransformer):
    """Replaces the calls in one function's tree, and lists them in ``calls``."""

    def __init__(self, function: FunctionType, owner: Owner | None, calls: Calls) -> None:
        self.function, self.owner, self.calls = function, owner, calls
        codes = list(nested_codes(function.__code__))
        self.local_names = {name for code in codes for name in (*code.co_varnames, *code.co_cellvars)}
        self.own_name = function.__code__.co_varnames[0] if owner and function.__code__.co_argcount else None
        self.defaults = _defaults(function)
        self.is_changed, self.used_names = False, set[str]()

    def rewrite(self, node: Any) -> Any:
        if isinstance(node, ast.Lambda):
            node.body = self.visit(node.body)
        else:
            node.body = [self.visit(statement) for statement in node.body]
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        function = node.func
        value = self.value_of(function)
        node.args = [self.visit(argument) for argument in node.args]
        node.keywords = [self.visit(keyword) for keyword in node.keywords]
        if is_replaceable(value):
            native_name, ours = FUNCTIONS[value]
            node.func = self._replace(node, native_name, ours)
        elif id(value) in NATIVE_FUNCTIONS:
            self.calls.left[f"F.{NATIVE_FUNCTIONS[id(value)]}"] = NO_SUCH_FUNCTION
        elif isinstance(value, FunctionType):
            if is_model_code(value):
                is_rewritten, calls = _rewrite_called(value)
                self.calls.update(calls)
                node.func = self._look_up(function) if is_rewritten else function
        elif isinstance(value, torch.jit.ScriptFunction):
            if re.search(rf"\b({'|'.join(NAMES)})\(", str(value.code)):
                self.calls.left[ast.unparse(function)] = f"compiled by TorchScript, line {node.lineno}"
        elif isinstance(value, functools.partial) and is_replaceable(value.func):
            self.calls.left[f"{ast.unparse(function)}, a partial of {FUNCTIONS[value.func][0]},"] = (
                f"manualgrad replaces calls and not partials, line {node.lineno}"
            )
        elif isinstance(function, ast.Attribute) and value is UNKNOWN and self._may_be_tensor_method(node, function):
            node.func = self._replace_method(node, function)
        elif value is LOCAL or not isinstance(function, (ast.Name, ast.Attribute)):
            for held in self._functions_held(function):
                self._list(*FUNCTIONS[held])
                self.is_changed = True
            node.func = self._wrap(REPLACEMENT_OF, self.visit(function))
        else:
            node.func = self.visit(function)
        return node

    def _functions_held(self, node: ast.expr) -> list[Any]:
        """Native functions that a variable or an item may be: a default, or held by a list, tuple or dict."""
        if isinstance(node, ast.Subscript):
            return _functions_in(self.value_of(node.value))
        if not isinstance(node, ast.Name):
            return []
        attributes = self.owner.functions.values() if self.owner else ()
        held = [function for functions in attributes if isinstance(functions, tuple) for function in functions]
        return _functions_in([self.defaults.get(node.id), *held])

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return self._check_value(node)

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        name = self._super_method(node)
        if name and self.own_name:
            self.is_changed = True
            return ast.copy_location(ast.Attribute(ast.Name(self.own_name, ast.Load()), name, ast.Load()), node)
        self._check_value(node)
        node.value = self.visit(node.value)
        return node

    def _check_value(self, node: ast.Name | ast.Attribute) -> ast.AST:
        """List a function that is not called here but stored, compared or passed on."""
        value: Any = self.value_of(node) if isinstance(node.ctx, ast.Load) else UNKNOWN
        if is_replaceable(value) or (is_model_code(value) and _rewrite_called(value)[0]):
            name = FUNCTIONS[value][0] if is_replaceable(value) else value.__qualname__
            self.calls.left[name] = f"used as a value, line {node.lineno}: where other code calls it, it is native"
            self.is_changed = True
        return node

    def _replace(self, node: ast.Call, native_name: str, ours: Callable[..., Any]) -> ast.expr:
        keywords = inspect.signature(ours).parameters
        unknown = [keyword.arg for keyword in node.keywords if keyword.arg and keyword.arg not in keywords]
        if unknown:
            self.calls.left[native_name] = f"our function does not take {' and '.join(unknown)}, line {node.lineno}"
            return node.func
        self._list(native_name, ours)
        return self._look_up(node.func)

    def _replace_method(self, node: ast.Call, function: ast.Attribute) -> ast.expr:
        function.value = self.visit(function.value)
        self._list(f"Tensor.{function.attr}", METHODS[function.attr])
        return self._wrap(REPLACEMENT_OF_METHOD, function.value, ast.Constant(function.attr))

    def _may_be_tensor_method(self, node: ast.Call, function: ast.Attribute) -> bool:
        """Return False for other attributes and for calls such as ``self.block.relu(x)`` of a layer."""
        if function.attr not in METHODS or self.value_of(function.value) is SELF:
            return False
        return not (function.attr.startswith("relu") and node.args)

    def _list(self, native_name: str, ours: Callable[..., Any]) -> None:
        self.calls.replaced[native_name, f"manualgrad.interop.operations.{ours.__name__}"] = None

    def _look_up(self, function: ast.expr) -> ast.expr:
        self.is_changed = True
        return self._wrap(REPLACEMENT_OF, function)

    def _wrap(self, name: str, *arguments: ast.expr) -> ast.expr:
        self.used_names.add(name)
        self.is_changed |= name == REPLACEMENT_OF_METHOD
        return ast.copy_location(ast.Call(ast.Name(name, ast.Load()), list(arguments), []), arguments[0])

    def _super_method(self, node: ast.Attribute) -> str | None:
        """Rewrite the method that ``super().name`` is; return the name of the attribute that will hold it."""
        call = node.value
        if not (self.owner and isinstance(call, ast.Call) and isinstance(call.func, ast.Name)):
            return None
        if call.func.id != "super":
            return None
        kind = self.value_of(call.args[0]) if call.args else _variable(self.function, "__class__")
        order = self.owner.kind.__mro__
        if kind not in order:
            return None
        for index, base in enumerate(order):
            if index > order.index(kind) and node.attr in vars(base):
                method = vars(base)[node.attr]
                new, calls = rewrite(method, self.owner) if isinstance(method, FunctionType) else (None, Calls())
                self.calls.update(calls)
                name = f"_manualgrad_{index}_{node.attr}"
                self.calls.super_methods |= {name: new} if new else {}
                return name if new else None
        return None

    def value_of(self, node: ast.expr) -> Any:
        """The value of a name or of attributes of a name, as far as it is known before the call."""
        if isinstance(node, ast.Name):
            if node.id in self.local_names:
                return SELF if node.id == self.own_name else LOCAL
            return _variable(self.function, node.id)
        if not isinstance(node, ast.Attribute):
            return UNKNOWN
        base = self.value_of(node.value)
        if base is SELF and self.owner:
            return self.owner.functions.get(node.attr, UNKNOWN)
        if any(base is unknown for unknown in (UNKNOWN, SELF, LOCAL)) or isinstance(base, Tensor):
            return UNKNOWN
        return _static_attribute(base, node.attr)


def _variable(function: FunctionType, name: str) -> Any:
    """Value of a variable of the closure, a global or a builtin."""
    if name in function.__code__.co_freevars and function.__closure__:
        return _content(function.__closure__[function.__code__.co_freevars.index(name)])
    return function.__globals__.get(name, vars(builtins).get(name, UNKNOWN))


def _defaults(function: FunctionType) -> dict[str, Any]:
    """Default values of parameters, by name."""
    code, defaults = function.__code__, function.__defaults__ or ()
    names = code.co_varnames[code.co_argcount - len(defaults) : code.co_argcount]
    return dict(zip(names, defaults, strict=True)) | (function.__kwdefaults__ or {})


def _functions_in(value: Any) -> list[Any]:
    """Native functions that manualgrad has in a list, tuple or dict."""
    values = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [item for item in values if is_replaceable(item)]


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # the variable has no value yet
        return UNKNOWN


def _static_attribute(value: Any, name: str) -> Any:
    """The attribute without running code of the model, such as a property."""
    found = inspect.getattr_static(value, name, UNKNOWN)
    return found.__func__ if isinstance(found, (staticmethod, classmethod)) else found


def _may_call(function: FunctionType, owner: Owner | None, seen: set[FunctionType]) -> bool:
    """Return False if no name in the bytecode leads to a native function or to model code that may call one.

    This spares the search for the source of most functions.
    """
    seen.add(function)
    names = {name for code in nested_codes(function.__code__) for name in (*code.co_names, *code.co_freevars)}
    if names & METHODS.keys() or (owner and names & owner.functions.keys()) or "super" in names:
        return True
    values = [*_defaults(function).values(), *(_variable(function, name) for name in names)]
    values += [item for value in values for item in _functions_in(value)]
    for value in list(values):
        if isinstance(value, ModuleType):
            values += [vars(value)[name] for name in names if name in vars(value)]
        elif not is_library(value if isinstance(value, (FunctionType, type)) else type(value)):
            values += [_static_attribute(value, name) for name in names]
    for value in values:
        if is_replaceable(value) or id(value) in NATIVE_FUNCTIONS or isinstance(value, torch.jit.ScriptFunction):
            return True
        if is_model_code(value) and value not in seen and _may_call(value, None, seen):
            return True
    return False
