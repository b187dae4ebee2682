"""Functional calls inside of forwards, such as ``F.relu``, replaced by ours."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from manualgrad._torch_compat import STACKLEVEL, has_no_forward
from manualgrad.interop import operations
from manualgrad.interop.report import Left, Replaced, Report, type_name
from manualgrad.interop.traced_class import original_class, set_traced_forward
from manualgrad.interop.tracing import trace_forward

# Native function: its name in reports, and ours.
FUNCTIONS: dict[Callable[..., Any], tuple[str, Callable[..., Any]]] = {
    F.relu: ("F.relu", operations.relu),
    torch.relu: ("torch.relu", operations.relu),
    torch.relu_: ("F.relu_", operations.relu_),
    F.max_pool2d: ("F.max_pool2d", operations.max_pool2d),
    F.max_pool2d_with_indices: ("F.max_pool2d", operations.max_pool2d_with_indices),
    torch.max_pool2d: ("torch.max_pool2d", operations.max_pool2d),
    F.linear: ("F.linear", operations.linear),
    F.conv2d: ("F.conv2d", operations.conv2d),
    torch.flatten: ("torch.flatten", operations.flatten),
    F.softmax: ("F.softmax", operations.softmax),
    torch.softmax: ("torch.softmax", operations.softmax),
    F.cross_entropy: ("F.cross_entropy", operations.cross_entropy),
}
METHODS: dict[str, Callable[..., Any]] = {
    "relu": operations.relu,
    "relu_": operations.relu_,
    "flatten": operations.flatten,
    "softmax": operations.softmax,
}
DEPRECATED = (STACKLEVEL, "size_average", "reduce")
NATIVE_FUNCTION_IDS = {id(value) for name, value in vars(F).items() if callable(value) and not name.startswith("_")}
LIBRARIES = ("torch.nn.", "torch.ao.", "manualgrad.")  # their forwards are those of layers and containers


def replace_functional_calls(model: nn.Module, report: Report) -> list[Left]:
    """Replace functional calls in the forward of every module of ``model``, and list them in ``report``.

    Returns:
        Entries of the modules whose forward cannot be traced.
    """
    untraced = []
    for name, module in list(model.named_modules()):
        forward = type(module).forward
        if getattr(forward, "__module__", "").startswith(LIBRARIES) or original_class(module):
            continue
        if has_no_forward(forward):
            continue
        try:
            graphs = trace_forward(module)
        except Exception as error:  # a forward may raise anything when its input is a proxy
            reason = f"its forward cannot be traced: {_first_line(error)}"
            untraced.append(Left(name, type_name(type(module)), reason))
            continue
        replaced: list[Replaced] = []
        left: dict[str, str] = {}
        for graph in graphs.values():
            for native_name, our_name in _replace_in_graph(graph, left):
                entry = Replaced(name, f"{native_name} in its forward", our_name)
                replaced += [entry] if entry not in replaced else []
        report.replaced.extend(replaced)
        report.left.extend(Left(name, f"{call} in its forward", reason) for call, reason in left.items())
        if replaced:
            set_traced_forward(module, graphs)
    report.left.extend(untraced)
    return untraced


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _replace_in_graph(graph: fx.Graph, left: dict[str, str]) -> list[tuple[str, str]]:
    """Replace calls in ``graph``, and add the reason for each native call that stays to ``left``.

    Returns:
        (name of the native function, name of ours) of each replaced call.
    """
    replaced = []
    for node in graph.nodes:
        if node.op == "call_function" and node.target in FUNCTIONS:
            native_name, function = FUNCTIONS[node.target]
        elif node.op == "call_method" and node.target in METHODS:
            native_name, function = f"Tensor.{node.target}", METHODS[node.target]
        else:
            if node.op == "call_function" and id(node.target) in NATIVE_FUNCTION_IDS:
                left[f"F.{node.target.__name__}"] = "manualgrad has no such function"
            continue
        options = {name: value for name, value in node.kwargs.items() if name != STACKLEVEL}
        deprecated = [name for name in DEPRECATED if options.pop(name, None) is not None]
        if deprecated:
            left[native_name] = f"{' and '.join(deprecated)} is deprecated"
            continue
        try:
            bound = inspect.signature(function).bind(*node.args, **options)
        except TypeError as error:
            left[native_name] = f"our function does not take these arguments: {error}"
            continue
        if function is operations.softmax and bound.arguments["dim"] is None:
            left[native_name] = "dim=None, which is deprecated: the number of dimensions decides about the dimension"
            continue
        node.op, node.target, node.args, node.kwargs = "call_function", function, bound.args, bound.kwargs
        replaced.append((native_name, f"manualgrad.interop.operations.{function.__name__}"))
    return replaced
