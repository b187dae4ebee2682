"""One edit made at several places of a function: who errs once often errs the same way twice."""

from __future__ import annotations

import ast
from collections.abc import Hashable, Iterator, Sequence
from itertools import combinations

from compare.gradients.source_changes.called_functions import CalledFunction
from compare.gradients.source_changes.edits import Edit, Site
from compare.gradients.source_changes.expression_edits import name

MAX_PAIRS = 4  # places of which every two are tried


def repeated_edits(edits: Sequence[Edit]) -> Iterator[tuple[Edit, ...]]:
    """Edits by the same rule at all their places, at those in one statement, and at every two of a few."""
    places: dict[Hashable, list[Edit]] = {}
    for edit in edits:
        rule = _rule(edit)
        if rule is not None:
            places.setdefault(rule, []).append(edit)
    for group in places.values():
        for part in _parts(group):
            if not any(_contains(a, b) for a in part for b in part):
                yield part


def scaled_name_edits(sites: Sequence[Site], called: CalledFunction) -> Iterator[tuple[Edit, ...]]:
    """A name times another wherever it is read, such as the incoming gradient times a weight."""
    reads: dict[str, list[Site]] = {}
    for site in sites:
        if isinstance(site.node, ast.Name) and isinstance(site.node.ctx, ast.Load) and site.node.id in called.tensors:
            reads.setdefault(site.node.id, []).append(site)
    for read, places in reads.items():
        for other in called.tensors:
            if other != read and len(places) > 1:
                yield tuple(site.edit(ast.BinOp(site.node, ast.Mult(), name(other)), 2) for site in places)


def exchanged_name_edits(sites: Sequence[Site], called: CalledFunction) -> Iterator[tuple[Edit, ...]]:
    """Two names of a statement in the place of each other, such as the ends of the edges of a graph."""
    statements: dict[int, dict[str, list[Site]]] = {}
    for site in sites:
        if isinstance(site.node, ast.Name) and isinstance(site.node.ctx, ast.Load) and _kind(site.node.id, called):
            statement = next((a for a in reversed(site.ancestors) if isinstance(a, ast.stmt)), None)
            statements.setdefault(id(statement), {}).setdefault(site.node.id, []).append(site)
    for names in statements.values():
        for a, b in combinations(names, 2):
            if _kind(a, called) == _kind(b, called) and not any(
                isinstance(site.ancestors[-1], ast.Call) and site.ancestors[-1].func is site.node
                for site in (*names[a], *names[b])
            ):
                yield (
                    *(site.edit(name(b), 1) for site in names[a]),
                    *(site.edit(name(a), 1) for site in names[b]),
                )


def _kind(local: str, called: CalledFunction) -> Hashable | None:
    """Shape and dtype of a tensor, or that it is a whole number; None for other names."""
    value = called.tensors.get(local, called.global_tensors.get(local))
    if value is not None:
        return value.shape, value.dtype
    return "number" if isinstance(called.numbers.get(local), int) else None


def _parts(group: list[Edit]) -> Iterator[tuple[Edit, ...]]:
    in_statements: dict[int, list[Edit]] = {}
    for edit in group:
        in_statements.setdefault(id(_statement_of(edit)), []).append(edit)
    parts = {tuple(group), *(tuple(part) for part in in_statements.values())}
    if len(group) <= MAX_PAIRS:
        parts |= set(combinations(group, 2))
    yield from (part for part in parts if len(part) > 1)


def _statement_of(edit: Edit) -> ast.AST:
    return next(node for node in reversed(edit.ancestors) if isinstance(node, (ast.stmt, ast.Lambda)))


def _contains(outer: Edit, inner: Edit) -> bool:
    """True if one edit's place is in what another replaces."""
    return any(ancestor is outer.changes[0][1] for ancestor in inner.ancestors)


def _stored_index(statement: ast.Assign | ast.AugAssign) -> str:
    """Text of the index at which a statement stores a value; "" without one."""
    target = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
    return ast.unparse(target.slice) if isinstance(target, ast.Subscript) else ""


def _rule(edit: Edit) -> Hashable | None:
    """Rule of an edit, without its place; None if it is not one that is repeated."""
    if len(edit.changes) != 1:
        return None
    _, old, new = edit.changes[0]
    if isinstance(old, (ast.Assign, ast.AugAssign)) and type(new) is type(old):
        before, after = (_stored_index(statement) for statement in (old, new))
        return ("stored index", before, after) if before and after and before != after else None
    if isinstance(old, ast.Constant):
        return "number", repr(old.value), ast.unparse(new) if new is not None else ""
    if isinstance(old, ast.Name) and isinstance(new, ast.expr):
        return "name", old.id, ast.unparse(new)
    if isinstance(old, ast.BinOp):
        if isinstance(new, ast.BinOp) and (new.left, new.right) == (old.left, old.right):
            return "operator", type(old.op), type(new.op)
        if new is old.left or new is old.right:
            return "operand left out", type(old.op), new is old.left
    if isinstance(old, ast.UnaryOp) and new is old.operand:
        return "sign", type(old.op)
    if isinstance(old, ast.Attribute) and new is old.value:
        return "attribute left out", old.attr
    if isinstance(old, ast.Call) and isinstance(old.func, ast.Attribute):
        if isinstance(new, ast.BinOp) and isinstance(new.left, ast.Call) and old.func.attr == "mean":
            return "divided", ast.unparse(new.right)
        if new is old.func.value:
            return "call left out", old.func.attr
        if isinstance(new, ast.Call) and isinstance(new.func, ast.Attribute) and new.func.value is old.func.value:
            return "call", old.func.attr, new.func.attr, len(new.args) - len(old.args), len(new.keywords)
    return None
