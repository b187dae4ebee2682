"""Traces of forwards by ``torch.fx``, refused if the trace would compute something else than the forward.

Each module's own ``forward`` is traced by itself, with calls of its children left as they are. So names, hooks and
types do not change, and a forward that cannot be traced concerns its own calls only. A trace has no branches: what
the forward decides anew in every call would be fixed.
"""

from __future__ import annotations

import copy
import inspect
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn


class UntraceableForward(Exception):
    """A trace would fix what the forward decides in every call."""


def trace_forward(module: nn.Module) -> dict[bool, fx.Graph]:
    """Trace the module's own forward in training mode (key True) and in evaluation mode (key False).

    Raises:
        UntraceableForward: the trace would not compute what the forward does.
        Exception: whatever the forward raises when its input is a proxy.
    """
    if "forward" in vars(module):
        raise UntraceableForward("this instance has a forward of its own")
    for parameter in inspect.signature(module.forward).parameters.values():
        variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if variadic or parameter.default is not parameter.empty:
            raise UntraceableForward(f"it takes {parameter}, and a trace would fix the value")
    graphs = {}
    with _restoring(module):
        for training in (True, False):
            for others_training in (True, False):
                for part in module.modules():
                    vars(part)["training"] = training if part is module else others_training
                graphs[training, others_training] = _Tracer().trace(module)
    for training in (True, False):
        if str(graphs[training, True]) != str(graphs[training, False]):
            raise UntraceableForward("it reads the training mode of another module")
    return {training: graphs[training, True] for training in (True, False)}


class _Proxy(fx.Proxy):
    """A proxy that raises if a forward reads its type: isinstance(proxy, Tensor) is False, the wrong branch."""

    @property  # type: ignore[misc]  # read-only, although a class can assign to __class__ of its instances
    def __class__(self) -> type:
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if not caller.startswith("torch.") and caller != __name__:
            raise UntraceableForward("it reads the type of a tensor")
        return _Proxy


class _Tracer(fx.Tracer):
    """Tracer of one forward, which leaves calls of child modules as they are."""

    proxy_buffer_attributes = True

    def __init__(self) -> None:
        super().__init__()
        self.modes = _context_modes()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def proxy(self, node: fx.Node) -> fx.Proxy:
        if _context_modes() != self.modes:
            raise UntraceableForward("it switches gradients or autocast on or off")
        return _Proxy(node, self)

    def create_arg(self, a: Any) -> Any:
        own_tensors = (*self.root.parameters(), *self.root.buffers())
        if isinstance(a, Tensor) and not any(a is tensor for tensor in own_tensors):
            raise UntraceableForward("it makes a tensor without its input, which would be the same in every call")
        return super().create_arg(a)


def _context_modes() -> tuple[bool, ...]:
    return (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"),
            torch.is_autocast_enabled("cuda"))  # fmt: skip


@contextmanager
def _restoring(module: nn.Module) -> Iterator[None]:
    """Restore attributes and random states on exit, and raise if the forward changed any but the training mode.

    A trace has the result of a forward only and leaves its other effects out.
    """
    parts = list(module.modules())
    saved = [
        (dict(vars(part)), {name: copy.copy(value) for name, value in _container_attributes(part)}) for part in parts
    ]
    identities = [_attribute_identities(part) for part in parts]
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    try:
        yield
        if [_attribute_identities(part) for part in parts] != identities:
            raise UntraceableForward("it sets attributes")
        if not torch.equal(torch.get_rng_state(), torch_state) or random.getstate() != python_state:
            raise UntraceableForward(
                "it draws random numbers without its input, which would be the same in every call"
            )
    finally:
        torch.set_rng_state(torch_state)
        random.setstate(python_state)
        for part, (attributes, contents) in zip(parts, saved, strict=True):
            vars(part).clear()
            vars(part).update(attributes)
            for name, items in contents.items():
                container = attributes[name]
                container.clear()
                (container.extend if isinstance(container, list) else container.update)(items)


def _container_attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Attributes that are a list, dict or set; parameters, buffers, children and hooks are in such dicts."""
    return ((name, value) for name, value in vars(module).items() if isinstance(value, (list, dict, set)))


def _attribute_identities(module: nn.Module) -> dict[str, Any]:
    """Ids of all attributes but ``training``, and of the items in containers: they differ if a forward set one."""
    identities: dict[str, Any] = {name: id(value) for name, value in vars(module).items() if name != "training"}
    for name, value in _container_attributes(module):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        identities[f"in {name}"] = [(key, id(item)) for key, item in items]
    return identities
