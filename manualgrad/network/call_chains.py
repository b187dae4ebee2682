"""Calls of layers, one on the result of the other, of which some are computed together where nobody can see it.

    layer, ReLU                 one operation, which stores R(z) in place of z
    layer, ReLU, max pooling    P(R(z)) = R(P(z)): the ReLU of the maxima, which are fewer
    ReLU, max pooling           the same, unless the ReLU writes over an input that somebody else may have
    convolution, any ReLU       of ``manualgrad.nn``, with any derivative at 0: one operation where there is a kernel

R is monotonic, so a window's maximum is at the same place before and after it if it is positive; if it is not, its
gradient is 0 either way. So all numbers are those of the calls one by one, bit for bit, but for the sign of a zero.
``register_*`` add classes of layers, and functions. Each condition of :func:`_is_unseen` has its case in
``tests/network/test_call_chains.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import nn

from manualgrad import nn as own
from manualgrad._torch_compat import (
    child_modules,
    has_global_hooks,
    has_hooks,
    is_compiled_in_place,
    own_parameters,
)
from manualgrad.ops.conv_relu_sign import conv2d_relu_with_subgradient
from manualgrad.ops.relu import relu_keeping_input_apply
from manualgrad.tensor_checks import PLAIN_TYPES, active_mode, has_values

_ORIGINAL_CALL = nn.Module.__call__
LAYER, SOURCE, RELU, POOL = "layer", "source", "relu", "pool"
OWN_CONV, OWN_RELU = "convolution of manualgrad.nn", "ReLU of manualgrad.nn"
CHAINS = frozenset({(LAYER, RELU), (LAYER, RELU, POOL), (SOURCE, RELU, POOL), (RELU, POOL), (OWN_CONV, OWN_RELU)})
WEIGHTED = (LAYER, SOURCE, OWN_CONV)
LENGTHS = (3, 2)  # of chains


_NO_OPTIONS: dict[str, Any] = {}


class Call(NamedTuple):
    """A call of ``function``, a module or another callable, on the result of the previous call."""

    function: Any
    args: tuple[Any, ...] = ()
    options: dict[str, Any] = _NO_OPTIONS

    def __call__(self, x: Any) -> Any:
        return self.function(x, *self.args, **self.options)


@dataclass(frozen=True)
class Role:
    """Place of a class of layers, or of a function, in a chain.

    Attributes:
        name: LAYER, SOURCE, RELU, POOL, OWN_CONV or OWN_RELU. What a LAYER and a SOURCE return is a new tensor, which
            nobody else has.
        forward: the forward of the class.
        with_relu: for a LAYER, ``with_relu(layer, x)`` computes the ReLU of its result; None if nothing does.
        allows: for a RELU, returns True if the call writes over its input; for a POOL, if it may stand before the
            ReLU. Called with the module, or with the arguments of the call behind the input.
    """

    name: str
    forward: Any = None
    with_relu: Callable[[Any, Any], Any] | None = None
    allows: Callable[..., bool] = bool


_roles: dict[Any, Role] = {
    own.Conv2d: Role(OWN_CONV, own.Conv2d.forward),
    own.ReLU: Role(OWN_RELU, own.ReLU.forward),
}


def register_layer(kind: type[nn.Module], with_relu: Callable[[Any, Any], Any] | None = None) -> None:
    """Add a class of layers whose results are new tensors, which the layers do not keep for themselves.

    ``with_relu(layer, x)`` stands for ``relu(layer(x))`` of instances of exactly this class."""
    _roles[kind] = Role(LAYER if with_relu else SOURCE, kind.forward, with_relu)


def register_relu(kind: Any, is_in_place: Callable[..., bool]) -> None:
    """Add a ReLU with the derivative 0 at 0, a class of modules or a function."""
    _roles[kind] = Role(RELU, getattr(kind, "forward", None), allows=is_in_place)


def register_pool(kind: Any, returns_fewer: Callable[..., bool]) -> None:
    """Add max pooling, a class of modules or a function. ``returns_fewer`` is True if a call returns only the maxima,
    and these are fewer than the pixels."""
    _roles[kind] = Role(POOL, getattr(kind, "forward", None), allows=returns_fewer)


def _role(function: Any) -> Role | None:
    """The role of a module or a function, or None."""
    if isinstance(function, nn.Module):
        return _roles.get(type(function))
    return _roles.get(function) if isinstance(function, FunctionType) else None


def child_roles(module: nn.Module) -> dict[str, str]:
    """The roles of the children that have one, by name."""
    roles = {name: _role(child) for name, child in child_modules(module).items()}
    return {name: role.name for name, role in roles.items() if role}


def has_chain(layers: Iterable[nn.Module | None]) -> bool:
    """Return True if some of the layers may be computed together with the next ones."""
    calls = [Call(layer) for layer in layers]
    return any(_is_chain(calls[n : n + length]) for n in range(len(calls)) for length in LENGTHS)


def run_layers(layers: Iterable[nn.Module | None], x: Any) -> Any:
    """The result of the layers, one after the other, on ``x``."""
    return run_calls([Call(layer) for layer in layers], x)


def run_calls(calls: Sequence[Call], x: Any) -> Any:
    """The result of the calls, one after the other, on ``x``; chains are computed together where that is possible."""
    position = 0
    while position < len(calls):
        chain = calls[position : position + 1]
        if not torch.compiler.is_compiling() and _role(chain[0].function):
            for length in LENGTHS:
                longer = calls[position : position + length]
                if _is_chain(longer) and _is_unseen(longer, x):
                    chain = longer
                    break
        x = run_chain(chain, x) if len(chain) > 1 else chain[0](x)
        position += len(chain)
    return x


def run_as_one(calls: Sequence[Call], x: Any) -> Any | None:
    """The result of all calls, one after the other, on ``x``, or None if they are not one chain; then nothing ran."""
    if torch.compiler.is_compiling() or not (_is_chain(calls) and _is_unseen(calls, x)):
        return None
    return run_chain(calls, x)


def _is_chain(calls: Sequence[Call]) -> bool:
    """Return True if the calls, two or three, are one of the chains that this file begins with."""
    if len(calls) < 2:
        return False
    roles = [_role(call.function) for call in calls]
    names = tuple([role.name if role else None for role in roles])
    if names not in CHAINS:
        return False
    if names[-1] == POOL and not _allows(roles[-1], calls[-1]):
        return False
    return names[0] != RELU or not _allows(roles[0], calls[0])


def _allows(role: Any, call: Call) -> bool:
    args, options = (call.args, call.options) if role.forward is None else ((call.function,), _NO_OPTIONS)
    return bool(role.allows(*args, **options))


def run_chain(calls: Sequence[Call], x: Any) -> Any:
    """The result of a chain on ``x``, whose calls nobody sees."""
    role = _role(calls[0].function)
    if role and role.name == OWN_CONV:
        return _run_own_pair(calls[0].function, calls[1].function, x)
    if len(calls) == 2 and role and role.with_relu:
        return role.with_relu(calls[0].function, x)
    maxima = calls[-1](calls[0](x) if len(calls) == 3 else x)
    # Autograd keeps the maxima and not their ReLU: the result of a pooling may be changed in place.
    return relu_keeping_input_apply(maxima, 0)


def _run_own_pair(conv: own.Conv2d, relu: own.ReLU, x: Any) -> Any:
    options = (conv.stride, conv.padding, conv.dilation, conv.groups, conv.flip_kernel, True)
    return conv2d_relu_with_subgradient(x, conv.weight, conv.bias, options, relu.subgradient)


def _is_unseen(calls: Sequence[Call], x: Any) -> bool:
    """Return True if only their result tells that the calls of a chain are made on ``x``.

    Hooks, a replaced forward and ``module.compile()`` see each call; a computed weight and a tensor of a subclass
    may do more in it."""
    if active_mode() or has_global_hooks() or nn.Module.__call__ is not _ORIGINAL_CALL:
        return False
    for call in calls:
        role, module = _role(call.function), call.function
        assert role is not None
        if role.forward is None:
            continue
        if (
            type(module).forward is not role.forward
            or "forward" in vars(module)
            or has_hooks(module)
            or is_compiled_in_place(module)
            or (role.name in WEIGHTED and type(own_parameters(module).get("weight")) not in PLAIN_TYPES)
        ):
            return False
    return type(x) in PLAIN_TYPES and has_values(x)
