"""The places of forward that its output depends on: an edit there is of no use where the output is right."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from compare.gradients.source_changes.edits import Site


def sites_of_output(function: ast.FunctionDef | ast.Lambda, sites: list[Site]) -> list[Site]:
    """The sites that the value of a function depends on."""
    if isinstance(function, ast.Lambda):
        return sites
    statements = _statements_of_output(function)
    return [site for site in sites if id(_statement_of(site)) in statements]


def _statement_of(site: Site) -> ast.AST:
    return next(node for node in (site.node, *reversed(site.ancestors)) if isinstance(node, ast.stmt))


def _statements_of_output(function: ast.FunctionDef) -> set[int]:
    """Ids of the statements that the returned value depends on, with those that contain them."""
    statements = [node for node in ast.walk(function) if isinstance(node, ast.stmt) and node is not function]
    needed: set[str] = set()
    dependent: set[int] = set()
    for _ in statements:
        number = len(dependent)
        for each in statements:
            inner = [node for node in ast.walk(each) if isinstance(node, ast.stmt) and node is not each]
            if id(each) not in dependent and (
                isinstance(each, ast.Return)
                or _changed(each) & needed
                or any(id(node) in dependent for node in inner)
            ):
                dependent.add(id(each))
                needed |= set(_names(each))
        if len(dependent) == number:
            break
    return dependent


def _changed(statement: ast.stmt) -> set[str]:
    """Names that a statement assigns, or whose methods it calls."""
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        return {_root(statement.value.func)}
    targets = getattr(statement, "targets", None) or [getattr(statement, "target", None)]
    stored = [node for target in targets if target is not None for node in ast.walk(target)]
    return {_root(node) for node in stored if isinstance(node, (ast.Name, ast.Attribute, ast.Subscript))}


def _names(statement: ast.stmt) -> Iterator[str]:
    yield from (_root(node) for node in ast.walk(statement) if isinstance(node, (ast.Name, ast.Attribute)))


def _root(node: ast.AST) -> str:
    """The name of an object; of ctx and other objects, an attribute counts as a name of its own."""
    attribute = ""
    while isinstance(node, (ast.Attribute, ast.Subscript, ast.Call)):
        if isinstance(node, ast.Attribute):
            attribute = node.attr
        node = node.func if isinstance(node, ast.Call) else node.value
    name = node.id if isinstance(node, ast.Name) else ""
    return f"ctx.{attribute}" if name == "ctx" and attribute else name
