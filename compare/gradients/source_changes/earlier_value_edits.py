"""Edits that read a value before a statement changes it in place."""

from __future__ import annotations

import ast
import types
from collections.abc import Iterator, Sequence

from compare.gradients.source_changes.called_functions import CalledFunction
from compare.gradients.source_changes.edits import Edit, Site
from compare.gradients.source_changes.ending_loops import names_in
from compare.gradients.source_changes.expression_edits import method, name
from compare.gradients.source_changes.insertion_edits import is_value

BEFORE = "before"  # name of the value that is kept
MAX_STATEMENTS = 4  # between the change and the expression


def earlier_value_edits(sites: Sequence[Site], called: CalledFunction) -> Iterator[Edit]:
    """An expression computed before an earlier statement of the same block writes into a tensor that it reads."""
    statements = {
        (id(s.place.parent), s.place.field, s.place.index): s for s in sites if isinstance(s.node, ast.stmt)
    }
    by_node = {id(s.node): key for key, s in statements.items()}
    for site in sites:
        key = by_node.get(id(next((a for a in reversed(site.ancestors) if isinstance(a, ast.stmt)), None)))
        if key is None or key[2] is None or not isinstance(site.node, ast.expr) or not is_value(site, called):
            continue
        parent, field, index = key
        for earlier in range(index - 1, max(index - 1 - MAX_STATEMENTS, -1), -1):
            changing = statements.get((parent, field, earlier))
            if changing is None or not _changed_names(changing.node, called) & names_in(site.node):
                continue
            value = method(site.node, "clone") if isinstance(site.node, (ast.Name, ast.Subscript)) else site.node
            kept = ast.Assign([ast.Name(BEFORE, ast.Store())], value)
            both = ast.If(ast.Constant(True), [kept, changing.node], [])
            changes = ((changing.place, changing.node, both), (site.place, site.node, name(BEFORE)))
            yield Edit(changes, 3, changing.ancestors)


def _changed_names(statement: ast.stmt, called: CalledFunction) -> set[str]:
    """Names of tensors that a statement may write into."""
    changed = set()
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    for target in targets if isinstance(statement, (ast.Assign, ast.AugAssign)) else ():
        if isinstance(target, ast.Subscript) or isinstance(statement, ast.AugAssign):
            changed.add(_root(target))
    for node in ast.walk(statement):
        if isinstance(node, ast.Call):
            function = node.func
            if isinstance(function, ast.Attribute) and function.attr.endswith("_"):
                changed.add(_root(function.value))
            elif isinstance(function, ast.Name):
                value = called.functions[0].__globals__.get(function.id)
                if isinstance(value, types.FunctionType):
                    changed |= {_root(argument) for argument in node.args}
    return changed - {""}


def _root(node: ast.AST | None) -> str:
    """The name that a subscript or an attribute is of."""
    while isinstance(node, (ast.Subscript, ast.Attribute)):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""
