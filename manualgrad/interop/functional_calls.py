"""Functional calls inside of forwards, such as ``F.relu``, replaced by ours."""

from __future__ import annotations

from torch import nn

from manualgrad.interop.known_values import is_library, is_model_code, may_call
from manualgrad.interop.report import Left, Replaced, Report, type_name
from manualgrad.interop.rewritten_class import clear_caches, original_class, rewrite_methods


def replace_functional_calls(model: nn.Module, report: Report) -> list[Left]:
    """Replace functional calls in the methods of every module of ``model``, and list them in ``report``.

    Returns:
        Entries of the methods that may have such calls and cannot be rewritten.
    """
    unreadable = []
    clear_caches()
    for name, module in model.named_modules():
        if original_class(module) or is_library(type(module)):
            continue
        own_forward = vars(module).get("forward")
        own_forward = getattr(own_forward, "__func__", own_forward)
        if own_forward is not None:
            if is_model_code(own_forward) and may_call(own_forward, None, set()):
                unreadable.append(Left(name, type_name(type(module)), "this instance has a forward of its own"))
            continue
        calls = rewrite_methods(module)
        report.replaced.extend(Replaced(name, f"{native} in its forward", ours) for native, ours in calls.replaced)
        report.left.extend(Left(name, f"{call} in its forward", why) for call, why in calls.left.items())
        unreadable += [
            Left(name, type_name(type(module)), f"its {method} cannot be rewritten: {why}")
            for method, why in calls.unreadable.items()
        ]
    report.left.extend(unreadable)
    return unreadable
