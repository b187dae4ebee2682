"""Loops that an edit may make endless: where a function has one, nothing is edited."""

from __future__ import annotations

import ast

from compare.gradients.source_changes.called_functions import CalledFunction
from compare.gradients.source_changes.editable_function import EditableFunction, SourceUnknown
from compare.gradients.source_changes.ending_loops import ends_by_its_test

GROWING = {"append", "extend", "insert", "add", "update", "put", "appendleft"}


def endless_loop(called: CalledFunction) -> int | None:
    """Line of a loop with ``while`` that ends by what it computes, or of one over a list that it extends."""
    try:
        node = EditableFunction(called).node
    except SourceUnknown:
        return None
    for loop in ast.walk(node):
        if isinstance(loop, ast.While) and not ends_by_its_test(loop, node):
            return loop.lineno
        if isinstance(loop, ast.For):
            over = {n.id for n in ast.walk(loop.iter) if isinstance(n, ast.Name)}
            methods = [n for n in ast.walk(loop) if isinstance(n, ast.Attribute) and n.attr in GROWING]
            if any(isinstance(n.value, ast.Name) and n.value.id in over for n in methods):
                return loop.lineno
    return None
