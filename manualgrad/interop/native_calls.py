"""Native functions that manualgrad has, and the lookup of ours in each call of a rewritten forward."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import BuiltinFunctionType, FunctionType, MethodDescriptorType, MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from manualgrad.interop import operations
from manualgrad.interop.layers import COUNTERPARTS

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
    F.softmax: ("F.softmax", operations.functional_softmax),
    torch.softmax: ("torch.softmax", operations.softmax),
    torch.special.softmax: ("torch.special.softmax", operations.softmax),
    F.cross_entropy: ("F.cross_entropy", operations.cross_entropy),
}
METHODS: dict[str, Callable[..., Any]] = {
    "relu": operations.relu,
    "relu_": operations.relu_,
    "flatten": operations.flatten,
    "softmax": operations.softmax,
}
FUNCTIONS |= {getattr(Tensor, name): (f"Tensor.{name}", function) for name, function in METHODS.items()}
FUNCTION_TYPES = (FunctionType, BuiltinFunctionType, MethodDescriptorType)


def _names_of_layer_functions() -> set[str]:
    names = {
        name
        for name, value in vars(F).items()
        if isinstance(value, FUNCTION_TYPES) and name[0] != "_" and value.__module__ != "torch.overrides"
    }
    names |= {"clamp", "clamp_min"}  # a ReLU if the minimum is 0
    return names | {f"{name}_" for name in names}


LAYER_NAMES = _names_of_layer_functions()
METHOD_NAMES = {
    name for name in LAYER_NAMES - {"unfold"} if hasattr(Tensor, name)
} | METHODS.keys()  # unfold is no F.unfold
# Id of each native function that computes a layer: its name in reports.
NATIVE_FUNCTIONS: dict[int, str] = {
    id(getattr(owner, name)): f"{prefix}.{name}"
    for owner, prefix, names in (
        (Tensor, "Tensor", METHOD_NAMES), (torch.special, "torch.special", LAYER_NAMES),
        (torch, "torch", LAYER_NAMES), (F, "F", LAYER_NAMES),
    )
    for name in names
    if isinstance(getattr(owner, name, None), FUNCTION_TYPES)
}  # fmt: skip

# Native function, or function of the model's code: the one to call in its place.
_replacements: dict[Callable[..., Any], Callable[..., Any]] = {
    native: function for native, (_, function) in FUNCTIONS.items()
}


def without_partials(value: Any) -> Any:
    """The function of a ``functools.partial``; any other value as it is."""
    while isinstance(value, functools.partial):
        value = value.func
    return value


def is_replaceable(value: Any) -> bool:
    """Return True if ``value`` is a native function that manualgrad has."""
    return isinstance(value, FUNCTION_TYPES) and value in FUNCTIONS


def set_replacement(function: Callable[..., Any], replacement: Callable[..., Any]) -> None:
    """Let rewritten forwards call ``replacement`` wherever they would call ``function``."""
    _replacements[function] = replacement


def replacement_of(function: Any) -> Any:
    """The function to call in place of ``function``, which is ``function`` itself if there is none.

    Rewritten forwards look up every function in every call, so a name that is bound anew is respected.
    """
    if isinstance(function, MethodType):
        method = _replacements.get(function.__func__)
        return function if method is None else method.__get__(function.__self__)
    if isinstance(function, functools.partial):
        inner = replacement_of(function.func)
        return function if inner is function.func else functools.partial(inner, *function.args, **function.keywords)
    return _replacements.get(function, function) if isinstance(function, FUNCTION_TYPES) else function


def replacement_of_layer(kind: Any) -> Any:
    """The class to instantiate in place of ``kind``, where a forward makes a layer and calls it at once."""
    return COUNTERPARTS.get(kind, kind)


def replacement_of_method(value: Any, name: str) -> Any:
    """The function to call in place of ``value.name``, where ``value`` may be a tensor or anything else."""
    if isinstance(value, Tensor) and getattr(type(value), name) is getattr(Tensor, name):
        return METHODS[name].__get__(value)
    return replacement_of(getattr(value, name))
