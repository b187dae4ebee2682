"""Layers one by one, but a convolution and the ReLU behind it as one operation where nobody can see the difference.

``register`` adds a pair of classes. Each condition of :func:`can_run_as_one` has its case in
``tests/network/test_layer_pairs.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

from torch import nn

from manualgrad._torch_compat import has_global_hooks, has_hooks, is_compiled_in_place, own_parameters
from manualgrad.tensor_checks import PLAIN_TYPES, active_mode, has_values

_ORIGINAL_CALL = nn.Module.__call__
Call = Callable[[Any, Any], Any]
# Class of the first layer: class of the ReLU, the forwards of both, and a function that computes both.
_PAIRS: dict[type[nn.Module], tuple[type[nn.Module], Any, Any, Call]] = {}


def register(layer_class: type[nn.Module], relu_class: type[nn.Module], call: Call) -> None:
    """Let ``call(layer, x)`` stand for ``relu(layer(x))`` of instances of exactly these classes."""
    _PAIRS[layer_class] = relu_class, layer_class.forward, relu_class.forward, call


def are_pair(layer: nn.Module | None, relu: nn.Module | None) -> bool:
    """Return True if the classes of two layers are those of a pair."""
    pair = _PAIRS.get(type(layer))  # type: ignore[arg-type]  # None has no pair
    return pair is not None and type(relu) is pair[0]


def has_pair(layers: Iterable[nn.Module | None]) -> bool:
    """Return True if a layer and the next one are a pair."""
    return any(are_pair(*neighbours) for neighbours in pairwise(layers))


def run_layers(layers: Iterable[nn.Module | None], x: Any) -> Any:
    """The result of the layers, one after the other, on ``x``; pairs are computed as one where that is possible."""
    layers = list(layers)
    fuses = not (active_mode() or has_global_hooks()) and nn.Module.__call__ is _ORIGINAL_CALL
    position = 0
    while position < len(layers):
        layer = layers[position]
        relu = layers[position + 1] if position + 1 < len(layers) else None
        if fuses and are_pair(layer, relu) and can_run_as_one(layer, relu, x):
            x = _PAIRS[type(layer)][3](layer, x)  # type: ignore[index]
            position += 2
        else:
            x = layer(x)  # type: ignore[misc]  # None raises as in nn.Sequential
            position += 1
    return x


def can_run_as_one(layer: Any, relu: Any, x: Any) -> bool:
    """Return True if only their result tells that a pair of layers is called on ``x``.

    Hooks, a replaced forward and ``module.compile()`` see the two calls; a computed weight and a tensor of a subclass
    may do more in them."""
    _, layer_forward, relu_forward, _ = _PAIRS[type(layer)]
    return (
        type(layer).forward is layer_forward
        and type(relu).forward is relu_forward
        and not any(
            "forward" in vars(module) or has_hooks(module) or is_compiled_in_place(module) for module in (layer, relu)
        )
        and type(own_parameters(layer).get("weight")) in PLAIN_TYPES
        and type(x) in PLAIN_TYPES
        and has_values(x)
    )
