"""Which functional calls are replaced, and by what."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from manualgrad.interop import operations

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
DEPRECATED = ("_stacklevel", "size_average", "reduce")
NATIVE = {id(value) for name, value in vars(F).items() if callable(value) and not name.startswith("_")}


def replace_in(graph: fx.Graph, left: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Replaces calls in ``graph``; gives (what was, what is now) of each, and adds (what is, why) to ``left``."""
    for node in graph.nodes:
        if node.op == "call_function" and node.target in FUNCTIONS:
            was, function = FUNCTIONS[node.target]
        elif node.op == "call_method" and node.target in METHODS:
            was, function = f"Tensor.{node.target}", METHODS[node.target]
        else:
            if node.op == "call_function" and id(node.target) in NATIVE:
                left.append((f"F.{node.target.__name__}", "manualgrad has no such function"))
            continue
        options = {name: value for name, value in node.kwargs.items() if name != "_stacklevel"}
        asked = [name for name in DEPRECATED if options.pop(name, None) is not None]
        if asked:
            left.append((was, f"{' and '.join(asked)} is deprecated"))
            continue
        try:
            bound = inspect.signature(function).bind(*node.args, **options)
        except TypeError as error:
            left.append((was, f"called in a way that ours does not know: {error}"))
            continue
        if function is operations.softmax and bound.arguments["dim"] is None:
            left.append((was, "dim=None chooses a dimension by the number of them, which PyTorch has deprecated"))
            continue
        node.op, node.target, node.args, node.kwargs = "call_function", function, bound.args, bound.kwargs
        yield was, f"manualgrad.interop.operations.{function.__name__}"
