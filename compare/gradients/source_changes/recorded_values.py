"""The value that each expression of a function has in a run."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import CodeType
from typing import Any

from torch import Tensor

from compare.gradients.source_changes.editable_function import EditableFunction, exchanged
from compare.gradients.source_changes.edits import Site

RECORD, INSTEAD = "__compare_record__", "__compare_instead__"
MAX_STEPS = 50  # of a loop


def record_values(
    function: EditableFunction, sites: Sequence[Site], run: Callable[[], Any], replaced: Sequence[Site] = ()
) -> dict[int, list[Tensor]]:
    """The tensors that each expression has in a run, one after the other, by their places in ``sites``.

    Args:
        replaced: those whose values the builtin name ``INSTEAD`` gives to what follows.
    """
    values: dict[int, list[Tensor]] = {}

    def record(n: int, value: Any) -> Any:
        if isinstance(value, Tensor) and len(values.setdefault(n, [])) < MAX_STEPS:
            values[n].append(value.detach().clone())
        return value

    code = recording_code(function, sites, replaced=replaced)
    if code is None:
        return {}
    with builtin(RECORD, record), exchanged({function: code}):
        run()
    return values


def recording_code(
    function: EditableFunction, sites: Sequence[Site], start: int = 0, replaced: Sequence[Site] = ()
) -> CodeType | None:
    """Code of a function that calls the builtin name ``RECORD`` with each expression's number and value.

    Args:
        start: number of the first one.
        replaced: as in :func:`record_values`.
    """
    try:
        for n, site in enumerate(sites, start):
            call = ast.Call(ast.Name(RECORD, ast.Load()), [ast.Constant(n), site.node], [])
            for place in [m for m, each in enumerate(replaced) if each is site]:
                call = value_instead(place, call)
            site.place.put(ast.fix_missing_locations(ast.copy_location(call, site.node)))
        return function.compiled()
    finally:
        for site in sites:
            site.place.put(site.node)


def value_instead(n: int, present: ast.expr | None = None) -> ast.Call:
    """An expression that calls the builtin name ``INSTEAD`` with the number of a place.

    Args:
        present: an expression that is computed, and whose value is not used.
    """
    arguments: list[ast.expr] = [ast.Constant(n), *([present] if present is not None else [])]
    return ast.Call(ast.Name(INSTEAD, ast.Load()), arguments, [])


@contextmanager
def builtin(name: str, value: Any) -> Iterator[None]:
    """Let every function read ``value`` under a name."""
    setattr(builtins, name, value)
    try:
        yield
    finally:
        delattr(builtins, name)
