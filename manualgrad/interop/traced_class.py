"""A subclass of a module's class whose forward runs two traced graphs: one for training, one for evaluation."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any, cast

from torch import fx, nn

ORIGINAL_CLASS = "_original_class"


def set_traced_forward(module: nn.Module, graphs: Mapping[bool, fx.Graph]) -> None:
    """Change the class of ``module`` to one whose forward runs ``graphs[module.training]``."""
    module.__class__ = _make_class(
        type(module), _ForwardCode.from_graph(graphs[True]), _ForwardCode.from_graph(graphs[False])
    )


def original_class(module: nn.Module) -> type[nn.Module] | None:
    """The class that ``module`` had before :func:`set_traced_forward`, or None if its class was not changed."""
    return vars(type(module)).get(ORIGINAL_CLASS)


@dataclass(frozen=True)
class _ForwardCode:
    """A traced forward as Python source, which can be pickled.

    Attributes:
        source: definition of the function ``forward``.
        names: the functions and types that it uses, by name.
        modules: names of the Python modules that it uses, by name.
    """

    source: str
    names: tuple[tuple[str, Any], ...]
    modules: tuple[tuple[str, str], ...]

    @classmethod
    def from_graph(cls, graph: fx.Graph) -> _ForwardCode:
        code = graph.python_code("self")
        modules = {name: value for name, value in code.globals.items() if isinstance(value, ModuleType)}
        names = tuple((name, value) for name, value in code.globals.items() if name not in modules)
        return cls(code.src, names, tuple((name, value.__name__) for name, value in modules.items()))

    def compile(self) -> Callable[..., Any]:
        names = dict(self.names) | {name: import_module(module) for name, module in self.modules}
        exec(compile(self.source, "<a traced forward>", "exec"), names)
        return cast("Callable[..., Any]", names["forward"])


def _make_class(base: type[nn.Module], training: _ForwardCode, evaluation: _ForwardCode) -> type[nn.Module]:
    """A subclass of ``base``, of the same name, with a traced forward for each mode."""
    training_forward, evaluation_forward = training.compile(), evaluation.compile()

    @functools.wraps(base.forward)
    def forward(self: nn.Module, *args: Any, **options: Any) -> Any:
        return (training_forward if self.training else evaluation_forward)(self, *args, **options)

    def reduce(self: nn.Module, protocol: int) -> tuple[Any, ...]:
        state = self.__getstate__()  # type: ignore[no-untyped-call]  # torch ships it untyped
        return _new_instance, (base, training, evaluation), state

    names = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
    return type(base.__name__, (base,), names | {"forward": forward, "__reduce_ex__": reduce, ORIGINAL_CLASS: base})


def _new_instance(base: type[nn.Module], training: _ForwardCode, evaluation: _ForwardCode) -> nn.Module:
    """A module without attributes, to which ``copy`` and ``pickle`` add the state."""
    kind = _make_class(base, training, evaluation)
    return kind.__new__(kind)
