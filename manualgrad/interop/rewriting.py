"""Functions rewritten so that each call of a native function that manualgrad has is a call of ours.

The syntax tree changes in these calls only: ``F.relu(x)`` becomes ``replacement_of(F.relu)(x)``. Everything else runs
as it was written, so each call decides anew about branches, options, modes and random numbers. Functions that the
rewritten one calls are rewritten too, if they belong to the model's code and not to a library.
"""

from __future__ import annotations

import ast
import copy
import inspect
import re
from collections.abc import Callable
from dataclasses import replace
from types import CellType, FunctionType, MethodType
from typing import Any

import torch
from torch import nn

from manualgrad.interop.calls import Calls
from manualgrad.interop.chain_rewriting import ROLE, ROLES_OF_OURS, ChainRewriter
from manualgrad.interop.known_values import (
    UNKNOWN,
    Owner,
    content_of,
    is_model_code,
    is_namespace,
    may_call,
    next_method,
    variable_of,
)
from manualgrad.interop.layers import COUNTERPARTS
from manualgrad.interop.links import REPLACEMENT_OF, REPLACEMENT_OF_LAYER, REPLACEMENT_OF_METHOD, RUNTIME
from manualgrad.interop.name_values import LOCAL, SELF, NameValues
from manualgrad.interop.native_calls import (
    FUNCTIONS,
    METHOD_NAMES,
    METHODS,
    NATIVE_FUNCTIONS,
    is_replaceable,
    set_replacement,
    without_partials,
)
from manualgrad.interop.report import NO_SUCH_FUNCTION, type_name
from manualgrad.interop.source_code import (
    SourceUnavailable,
    copy_function,
    find_definition,
    make_function,
    nested_codes,
)
from manualgrad.network.call_chains import RELU

OPERATIONS = "manualgrad.interop.operations"
NAMES = {name.rpartition(".")[2] for name, _ in FUNCTIONS.values()} | {"max_pool2d_with_indices"}


def rewrite(function: FunctionType, owner: Owner | None = None) -> tuple[FunctionType | None, Calls]:
    """Rewrite ``function``, a method of ``owner`` or any other function.

    Returns:
        (the rewritten function, or None if nothing was replaced; the calls).
    """
    calls = Calls()
    wrapped = getattr(function, "__wrapped__", None)
    if isinstance(wrapped, FunctionType) and wrapped.__code__ is not function.__code__:
        return _rewrite_decorated(function, wrapped, owner)
    if not is_model_code(function):
        return None, calls
    replaces_functions = (owner is None or owner.functional) and may_call(function, owner, set())
    names = {name for code in nested_codes(function.__code__) for name in code.co_names}
    if not (replaces_functions or (owner and RELU in {owner.roles.get(name) for name in names})):
        return None, calls
    try:
        definition = find_definition(function)
    except SourceUnavailable as error:
        if replaces_functions and NAMES & names:
            calls.unreadable[function.__name__] = str(error)
        return None, calls
    rewriter = _Rewriter(function, owner, calls)
    node = copy.deepcopy(definition.node)
    if replaces_functions:
        node = rewriter.rewrite(node)
    chains = ChainRewriter(function.__code__, rewriter.names.own_name, owner.roles if owner else {})
    node = chains.rewrite(node)
    if not (rewriter.is_changed or chains.used_names):
        return None, calls
    used_names = rewriter.used_names | chains.used_names
    used = {name: value for name, value in RUNTIME.items() if name in used_names}
    return make_function(function, replace(definition, node=node), used), calls


def _rewrite_decorated(
    function: FunctionType, wrapped: FunctionType, owner: Owner | None
) -> tuple[FunctionType | None, Calls]:
    """Rewrite the function inside of a decorator's wrapper, as ``torch.no_grad()`` makes one around a forward."""
    inner, calls = rewrite(wrapped, owner)
    if inner is None:
        return None, calls
    cells = function.__closure__ or ()
    is_inside = [content_of(cell) is wrapped for cell in cells]
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


def clear_cache() -> None:
    """Forget the functions that rewritten functions call, so that those defined anew are rewritten."""
    _called_functions.clear()


class _Rewriter(ast.NodeTransformer):
    """Replaces the calls in one function's tree, and lists them in ``calls``."""

    def __init__(self, function: FunctionType, owner: Owner | None, calls: Calls) -> None:
        self.function, self.owner, self.calls = function, owner, calls
        self.names = NameValues(function, owner)
        self.value_of = self.names.value_of
        self.is_changed, self.used_names = False, set[str]()

    def rewrite(self, node: Any) -> Any:
        if isinstance(node, ast.Lambda):
            node.body = self.visit(node.body)
        else:
            node.body = [self.visit(statement) for statement in node.body]
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        function = node.func
        value = without_partials(self.value_of(function))
        node.args = [self.visit(argument) for argument in node.args]
        node.keywords = [self.visit(keyword) for keyword in node.keywords]
        if is_replaceable(value):
            node.func = self._replace(node, *FUNCTIONS[value])
        elif id(value) in NATIVE_FUNCTIONS:
            self.calls.left[_name_as_written(node, NATIVE_FUNCTIONS[id(value)])] = NO_SUCH_FUNCTION
        elif isinstance(value, FunctionType):
            if is_model_code(value):
                is_rewritten, calls = _rewrite_called(value)
                self.calls.update(calls)
                node.func = self._look_up(function) if is_rewritten else function
        elif isinstance(value, torch.jit.ScriptFunction):
            if re.search(rf"\b({'|'.join(NAMES)})\(", str(value.code)):
                self.calls.left[ast.unparse(function)] = f"compiled by TorchScript, line {node.lineno}"
        elif isinstance(value, MethodType):
            method: Any = value.__func__
            if is_model_code(method) and may_call(method, None, set()):
                self.calls.left[ast.unparse(function)] = f"a bound method that an attribute holds, line {node.lineno}"
        elif (value is getattr or value is vars) and node.args and is_namespace(self.value_of(node.args[0])):
            self.calls.replaced[ast.unparse(node), f"{OPERATIONS}, where it has the function"] = None
            self.is_changed = True
        elif ast.unparse(function).startswith("torch.ops."):
            self.calls.left[ast.unparse(function)] = NO_SUCH_FUNCTION
        elif isinstance(function, ast.Call) and isinstance(value := self.value_of(function.func), type):
            node.func = self._replace_layer(function, value)
        elif isinstance(function, ast.Attribute) and value is UNKNOWN and self._may_be_tensor_method(node, function):
            node.func = self._replace_method(node, function)
        else:
            held = self.names.functions_held(function)
            for item in held:
                self._list_held(item)
            if held or value is LOCAL or not isinstance(function, (ast.Name, ast.Attribute)):
                node.func = self._wrap(REPLACEMENT_OF, self.visit(function))
            else:
                node.func = self.visit(function)
        return node

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return self._check_value(node)

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        name = self._super_method(node)
        if name and self.names.own_name:
            self.is_changed = True
            return ast.copy_location(ast.Attribute(ast.Name(self.names.own_name, ast.Load()), name, ast.Load()), node)
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

    def _list_held(self, function: Any) -> None:
        """List a function that a call may reach. The call looks up what replaces it."""
        if is_replaceable(function):
            self._list(*FUNCTIONS[function])
            self.is_changed = True
        else:
            is_rewritten, calls = _rewrite_called(function)
            self.calls.update(calls)
            self.is_changed |= is_rewritten

    def _replace_layer(self, made: ast.Call, kind: type) -> ast.expr:
        """Replace the layer that ``nn.ReLU()(x)`` makes."""
        made.func = self.visit(made.func)
        if kind in COUNTERPARTS and not (kind is nn.Softmax and not made.args and not made.keywords):
            self.calls.replaced[f"{type_name(kind)}()", type_name(COUNTERPARTS[kind])] = None
            self.is_changed = True
            made.func = self._wrap(REPLACEMENT_OF_LAYER, made.func)
        elif issubclass(kind, nn.Module) and kind.__module__.startswith("torch.nn."):
            self.calls.left[f"{type_name(kind)}()"] = f"made in every call, line {made.lineno}"
        return made

    def _replace(self, node: ast.Call, native_name: str, ours: Callable[..., Any]) -> ast.expr:
        native_name = _name_as_written(node, native_name)
        keywords = inspect.signature(ours).parameters
        unknown = [keyword.arg for keyword in node.keywords if keyword.arg and keyword.arg not in keywords]
        if unknown:
            self.calls.left[native_name] = f"our function does not take {' and '.join(unknown)}, line {node.lineno}"
            return node.func
        self._list(native_name, ours)
        setattr(node, ROLE, ROLES_OF_OURS.get(ours))
        return self._look_up(node.func)

    def _replace_method(self, node: ast.Call, function: ast.Attribute) -> ast.expr:
        function.value = self.visit(function.value)
        if function.attr not in METHODS:
            self.calls.left[f"Tensor.{function.attr}"] = NO_SUCH_FUNCTION
            return function
        self._list(f"Tensor.{function.attr}", METHODS[function.attr])
        setattr(node, ROLE, ROLES_OF_OURS.get(METHODS[function.attr]))
        return self._wrap(REPLACEMENT_OF_METHOD, function.value, ast.Constant(function.attr))

    def _may_be_tensor_method(self, node: ast.Call, function: ast.Attribute) -> bool:
        """Return False for other attributes and for calls such as ``self.block.relu(x)`` of a layer."""
        if function.attr not in METHOD_NAMES or self.value_of(function.value) is SELF:
            return False
        return not (function.attr.startswith("relu") and node.args)

    def _list(self, native_name: str, ours: Callable[..., Any]) -> None:
        self.calls.replaced[native_name, f"{OPERATIONS}.{ours.__name__}"] = None

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
        kind = self.value_of(call.args[0]) if call.args else variable_of(self.function, "__class__")
        index, method = next_method(self.owner.kind, kind, node.attr)
        new, calls = rewrite(method, self.owner) if isinstance(method, FunctionType) else (None, Calls())
        self.calls.update(calls)
        if new is None:
            return None
        name = f"_manualgrad_{index}_{node.attr}"
        self.calls.super_methods[name] = new
        return name


def _name_as_written(node: ast.Call, name: str) -> str:
    """``torch.relu_`` for ``F.relu_``, which is the same function, where the call is written so."""
    written = ast.unparse(node.func)
    return written if written == f"torch.{name.rpartition('.')[2]}" else name
