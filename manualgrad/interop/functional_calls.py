"""Functional calls inside of forwards, such as ``F.relu``, replaced by ours."""

from __future__ import annotations

from typing import Any

from torch import nn

from manualgrad.interop import library_attributes
from manualgrad.interop.known_values import is_library, is_model_code, is_plain_object, may_call, note_functions
from manualgrad.interop.native_calls import without_partials
from manualgrad.interop.report import Left, Replaced, Report, type_name
from manualgrad.interop.rewritten_class import (
    ORIGINAL_FORWARD,
    clear_caches,
    forget_rewritten,
    original_class,
    replaces_functions,
    restore_methods,
    rewrite_methods,
)
from manualgrad.network.call_chains import RELU, child_roles


def rewrite_chains(model: nn.Module) -> None:
    """Let the methods of every module of ``model`` compute chains of layers together, and change nothing else."""
    forget_rewritten()
    for module in model.modules():
        if RELU in child_roles(module).values() and not (original_class(module) or is_library(type(module))):
            rewrite_methods(module, functional=False)


def replace_functional_calls(model: nn.Module, report: Report) -> list[Left]:
    """Replace functional calls in the methods of every module of ``model``, and list them in ``report``.

    Returns:
        Entries of the methods that may have such calls and cannot be rewritten.
    """
    unreadable = []
    clear_caches()
    note_functions(model)
    for name, module in model.named_modules():
        if replaces_functions(module):
            continue
        if original_class(module):
            restore_methods(module)
        library_attributes.replace(name, module, report)
        if is_library(type(module)) and "forward" not in vars(module):
            continue
        calls = rewrite_methods(module)
        report.replaced.extend(Replaced(name, f"{native} in its forward", ours) for native, ours in calls.replaced)
        report.left.extend(Left(name, f"{call} in its forward", why) for call, why in calls.left.items())
        reasons = [f"its {method} cannot be rewritten: {why}" for method, why in calls.unreadable.items()]
        reasons += _own_forward_problem(module) + [
            f"its attribute {attribute} is a {type(value).__name__}, which is no module: its methods stay native"
            for attribute, value in vars(module).items()
            if is_plain_object(value) and _has_method_with_calls(value)
        ]
        unreadable += [Left(name, type_name(type(module)), reason) for reason in reasons]
    report.left.extend(unreadable)
    return unreadable


def _own_forward_problem(module: nn.Module) -> list[str]:
    """Reason why the forward of this instance stays native, if it has one of a kind that is not rewritten."""
    forward = vars(module).get("forward")
    if forward is None or ORIGINAL_FORWARD in vars(module) or is_model_code(getattr(forward, "__func__", forward)):
        bound_to = getattr(forward, "__self__", module)
        if bound_to is module or ORIGINAL_FORWARD in vars(module):
            return []
    function: Any = without_partials(forward)
    function = getattr(function, "__func__", function)
    if is_model_code(function) and may_call(function, None, set()):
        return [f"this instance has a forward of its own, which is a {type(forward).__name__} of {function.__name__}"]
    return []


def _has_method_with_calls(value: Any) -> bool:
    methods = [member for kind in type(value).__mro__ for member in vars(kind).values()]
    return any(is_model_code(method) and may_call(method, None, set()) for method in methods)
