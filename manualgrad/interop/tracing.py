"""Functional calls inside a ``forward``, replaced by ours through ``torch.fx``.

Each module's own ``forward`` is traced by itself, its children being called as they are. So names, hooks and types
stay what they were, and a forward that does not trace keeps only itself from being replaced. A trace is a straight
line: what it would freeze without a word is looked for, and refused.
"""

from __future__ import annotations

import copy
import functools
import inspect
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, fx, nn

from manualgrad.interop.calls import replace_in
from manualgrad.interop.report import Left, Replaced, Report, name_of


class Frozen(Exception):
    """The trace would fix what is decided at every call."""


class _Proxy(fx.Proxy):
    """Notices when a forward asks for its type: isinstance(proxy, Tensor) is False, which takes the wrong branch."""

    @property
    def __class__(self) -> type:
        asking = sys._getframe(1).f_globals.get("__name__", "")
        if not asking.startswith("torch.") and asking != __name__:
            raise Frozen("it asks for the type of a tensor")
        return _Proxy


class _Tracer(fx.Tracer):
    """Follows one forward; children are called as they are."""

    proxy_buffer_attributes = True

    def __init__(self) -> None:
        super().__init__()
        self.modes = _modes()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def proxy(self, node: fx.Node) -> fx.Proxy:
        if _modes() != self.modes:
            raise Frozen("it switches gradients or autocast on or off")
        return _Proxy(node, self)

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, Tensor) and not any(a is held for held in (*self.root.parameters(), *self.root.buffers())):
            raise Frozen("it makes a tensor without its input, which would be the same in every call")
        return super().create_arg(a)


def _modes() -> tuple[bool, ...]:
    return (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"),
            torch.is_autocast_enabled("cuda"))  # fmt: skip


def replace_calls(module: nn.Module, told: Report) -> list[Left]:
    """Replaces functional calls in ``module`` and in every module within it; returns what could not be traced."""
    untraced = []
    for name, part in list(module.named_modules()):
        forward = type(part).forward
        if getattr(forward, "__module__", "").startswith(("torch.nn.", "torch.ao.", "manualgrad.")) or traced_from(
            part
        ):
            continue  # a layer or a container
        if forward is nn.Module.forward or getattr(forward, "__name__", "") == "_forward_unimplemented":
            continue
        try:
            graphs = _traced(part)
        except Exception as error:  # whatever a forward raises when it meets a proxy is the reason to tell
            untraced.append(Left(name, name_of(type(part)), f"its forward cannot be traced: {_words(error)}"))
            continue
        replaced, left = [], []
        for graph in graphs.values():
            for was, now in replace_in(graph, left):
                entry = Replaced(name, f"{was} in its forward", now)
                replaced += [entry] if entry not in replaced else []
        told.replaced.extend(replaced)
        told.left.extend(Left(name, f"{was} in its forward", why) for was, why in dict(left).items())
        if replaced:
            part.__class__ = _with_forward(type(part), _Code.of(graphs[True]), _Code.of(graphs[False]))
    told.left.extend(untraced)
    return untraced


def _words(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _traced(part: nn.Module) -> dict[bool, fx.Graph]:
    """The graph of ``part``'s own forward in training mode (True) and in evaluation mode (False)."""
    if "forward" in vars(part):
        raise Frozen("this one has a forward of its own")
    for parameter in inspect.signature(part.forward).parameters.values():
        if parameter.default is not parameter.empty or parameter.kind in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        ):
            raise Frozen(f"it takes {parameter}, and a trace would fix what is given")
    found = {}
    with _unchanged(part):
        for own in (True, False):
            for others in (True, False):
                for module in part.modules():
                    vars(module)["training"] = own if module is part else others
                found[own, others] = _Tracer().trace(part)
    for own in (True, False):
        if str(found[own, True]) != str(found[own, False]):
            raise Frozen("it looks at the training mode of another module")
    return {own: found[own, True] for own in (True, False)}


@contextmanager
def _unchanged(part: nn.Module) -> Iterator[None]:
    """Puts back what a forward changes besides its result, and refuses it: a trace leaves that out."""
    modules = list(part.modules())
    held = [(dict(vars(module)), {k: copy.copy(v) for k, v in _containers(module)}) for module in modules]
    before = [_contents(module) for module in modules]
    numbers = torch.get_rng_state(), random.getstate()
    try:
        yield
        if [_contents(module) for module in modules] != before:
            raise Frozen("it sets attributes")
        if not torch.equal(torch.get_rng_state(), numbers[0]) or random.getstate() != numbers[1]:
            raise Frozen("it draws random numbers without its input, which would be the same in every call")
    finally:
        torch.set_rng_state(numbers[0])
        random.setstate(numbers[1])
        for module, (attributes, inside) in zip(modules, held, strict=True):
            vars(module).clear()
            vars(module).update(attributes)
            for name, contents in inside.items():
                container = attributes[name]
                container.clear()
                (container.extend if isinstance(container, list) else container.update)(contents)


def _containers(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Attributes with things in them; parameters, buffers, children and hooks are among them."""
    return ((name, value) for name, value in vars(module).items() if isinstance(value, (list, dict, set)))


def _contents(module: nn.Module) -> dict[str, Any]:
    """What each attribute but the mode is, and what is in it: enough to see that a forward set one."""
    held: dict[str, Any] = {name: id(value) for name, value in vars(module).items() if name != "training"}
    for name, value in _containers(module):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        held[f"in {name}"] = [(key, id(item)) for key, item in items]
    return held


# --------------------------------------------------------------------------------- the traced forward, as a class


@dataclass(frozen=True)
class _Code:
    """A traced forward as Python, with the names that it uses: functions and types as they are, modules by name."""

    source: str
    names: tuple[tuple[str, Any], ...]
    modules: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, graph: fx.Graph) -> _Code:
        code = graph.python_code("self")
        modules = {name: value for name, value in code.globals.items() if isinstance(value, ModuleType)}
        names = tuple((name, value) for name, value in code.globals.items() if name not in modules)
        return cls(code.src, names, tuple((name, value.__name__) for name, value in modules.items()))

    def function(self) -> Callable[..., Any]:
        names = dict(self.names) | {name: import_module(module) for name, module in self.modules}
        exec(compile(self.source, "<a traced forward>", "exec"), names)
        return names["forward"]


def _with_forward(base: type[nn.Module], training: _Code, evaluating: _Code) -> type[nn.Module]:
    """``base`` with a traced forward for each mode."""
    in_training, in_evaluation = training.function(), evaluating.function()

    @functools.wraps(base.forward)
    def forward(self: nn.Module, *args: Any, **options: Any) -> Any:
        return (in_training if self.training else in_evaluation)(self, *args, **options)

    def reduce(self: nn.Module, protocol: int) -> tuple[Any, ...]:
        return _revived, (base, training, evaluating), self.__getstate__()

    named = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
    return type(base.__name__, (base,), named | {"forward": forward, "__reduce_ex__": reduce, "_traced_from": base})


def _revived(base: type[nn.Module], training: _Code, evaluating: _Code) -> nn.Module:
    """What ``copy`` and ``pickle`` begin with: a module without attributes."""
    kind = _with_forward(base, training, evaluating)
    return kind.__new__(kind)


def traced_from(module: nn.Module) -> type[nn.Module] | None:
    """The class that ``module`` had before its forward was traced, if it was."""
    return vars(type(module)).get("_traced_from")
