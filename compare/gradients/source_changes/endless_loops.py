"""Loops that an edit may make endless: where a function has one, nothing is edited."""

from __future__ import annotations

import ast

from compare.gradients.source_changes.called_functions import CalledFunction
from compare.gradients.source_changes.editable_function import EditableFunction, SourceUnknown
from compare.gradients.source_changes.edits import ends_by_its_test

GROWING = {"append", "extend", "insert", "add", "update", "put", "appendleft"}


def may_be_endless(called: CalledFunction) -> bool:
    """True for a loop with ``while`` that ends by what it computes, and for one over a list that it extends."""
    try:
        node = EditableFunction(called).node
    except SourceUnknown:
        return False
    for loop in ast.walk(node):
        if isinstance(loop, ast.While) and not ends_by_its_test(loop):
            return True
        if isinstance(loop, ast.For):
            over = {n.id for n in ast.walk(loop.iter) if isinstance(n, ast.Name)}
            methods = [n for n in ast.walk(loop) if isinstance(n, ast.Attribute) and n.attr in GROWING]
            if any(isinstance(n.value, ast.Name) and n.value.id in over for n in methods):
                return True
    return False
