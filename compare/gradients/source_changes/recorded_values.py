"""The value that each expression of a function has in a run."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from compare.gradients.source_changes.editable_function import EditableFunction, exchanged
from compare.gradients.source_changes.edits import Site

RECORD, INSTEAD = "__compare_record__", "__compare_instead__"
MAX_STEPS = 50  # of a loop


def record_values(
    function: EditableFunction, sites: Sequence[Site], run: Callable[[], Any]
) -> dict[int, list[Tensor]]:
    """The tensors that each expression has in a run, one after the other, by their places in ``sites``."""
    values: dict[int, list[Tensor]] = {}

    def record(n: int, value: Any) -> Any:
        if isinstance(value, Tensor) and len(values.setdefault(n, [])) < MAX_STEPS:
            values[n].append(value.detach().clone())
        return value

    try:
        for n, site in enumerate(sites):
            call = ast.Call(ast.Name(RECORD, ast.Load()), [ast.Constant(n), site.node], [])
            site.place.put(ast.fix_missing_locations(ast.copy_location(call, site.node)))
        code = function.compiled()
    finally:
        for site in sites:
            site.place.put(site.node)
    if code is None:
        return {}
    with builtin(RECORD, record), exchanged({function: code}):
        run()
    return values


def value_instead() -> ast.expr:
    """An expression that calls the builtin name ``INSTEAD``."""
    return ast.Call(ast.Name(INSTEAD, ast.Load()), [], [])


@contextmanager
def builtin(name: str, value: Any) -> Iterator[None]:
    """Let every function read ``value`` under a name."""
    setattr(builtins, name, value)
    try:
        yield
    finally:
        delattr(builtins, name)
