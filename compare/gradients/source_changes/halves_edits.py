"""Edits of all pairs of elements in a function: neighbours in place of an element of each half, or the other way."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

from compare.gradients.source_changes.edits import Edit, Place, Site
from compare.gradients.source_changes.expression_edits import method, number

COST = 2


def halves_edits(sites: Sequence[Site]) -> Iterator[tuple[Edit, ...]]:
    """``x[..., 0::2]`` and ``x[..., 1::2]`` in place of the halves of ``x`` and back, with what joins them."""
    slices = [edit for site in sites for edit in _slices_of(site)]
    to_neighbours = [edit for edit, is_step in slices if not is_step]
    to_halves = [edit for edit, is_step in slices if is_step]
    joined = [edit for site in sites if (edit := _stacked(site)) is not None]
    split = [edit for site in sites if (edit := _concatenated(site)) is not None]
    for edits, joins in ((to_halves, split), (to_neighbours, joined)):
        if len(edits) > 1 or joins:
            yield *edits, *joins
            if edits and joins:
                yield tuple(edits)


def _slices_of(site: Site) -> Iterator[tuple[Edit, bool]]:
    """Edits of slices that are read or stored at a site; True for one with steps of two."""
    node = site.node
    method_name = node.func.attr if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else ""
    if method_name == "chunk" and [ast.unparse(argument) for argument in node.args] == ["2", "-1"]:
        neighbours = [_subscript(node.func.value, ast.Slice(number(n), None, number(2))) for n in (0, 1)]
        yield site.edit(ast.Tuple(neighbours, ast.Load()), COST), False
    targets = node.targets if isinstance(node, ast.Assign) else [node]
    for target in targets:
        if not isinstance(target, ast.Subscript):
            continue
        parts = target.slice.elts if isinstance(target.slice, ast.Tuple) else [target.slice]
        part = parts[-1]
        if not isinstance(part, ast.Slice):
            continue
        length = ast.Subscript(ast.Attribute(target.value, "shape", ast.Load()), number(-1), ast.Load())
        other = _other_half(part, length)
        if other is None:
            continue
        new = ast.Tuple([*parts[:-1], other], ast.Load()) if isinstance(target.slice, ast.Tuple) else other
        ancestors = site.ancestors if target is node else (*site.ancestors, node)
        change = (Place(target, "slice", None), target.slice, new)
        yield Edit((change,), COST, (*ancestors, target)), part.step is not None


def _other_half(part: ast.Slice, length: ast.expr) -> ast.Slice | None:
    """The half for every second element, every second element for a half; None for another slice."""
    lower, upper = part.lower, part.upper
    if part.step is not None:
        if ast.unparse(part.step) != "2" or (lower is not None and ast.unparse(lower) not in ("0", "1")):
            return None
        half = _half_of(length if upper is None else upper)
        is_second = lower is not None and ast.unparse(lower) == "1"
        return ast.Slice(half, upper, None) if is_second else ast.Slice(None, half, None)
    if (lower is None or ast.unparse(lower) == "0") and upper is not None:
        return ast.Slice(None, ast.BinOp(number(2), ast.Mult(), upper), number(2))
    if lower is not None:
        return ast.Slice(number(1), upper, number(2))
    return None


def _half_of(length: ast.expr) -> ast.expr:
    if isinstance(length, ast.Constant) and isinstance(length.value, int):
        return number(length.value // 2)
    return ast.BinOp(length, ast.FloorDiv(), number(2))


def _concatenated(site: Site) -> Edit | None:
    """``torch.stack(parts, -1).flatten(-2)``: ``torch.cat(parts, -1)``."""
    node = site.node
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return None
    stacked = node.func.value
    if node.func.attr not in ("flatten", "reshape", "view", "reshape_as", "view_as"):
        return None
    parts = _joined_parts(stacked, "stack")
    return None if parts is None else site.edit(_call_of_torch("cat", parts), COST)


def _stacked(site: Site) -> Edit | None:
    """``torch.cat(parts, -1)``: ``torch.stack(parts, -1).flatten(-2)``."""
    parts = _joined_parts(site.node, "cat")
    return None if parts is None else site.edit(method(_call_of_torch("stack", parts), "flatten", number(-2)), COST)


def _joined_parts(node: ast.AST, function: str) -> ast.expr | None:
    if not isinstance(node, ast.Call) or ast.unparse(node.func) != f"torch.{function}" or not node.args:
        return None
    dims = [*node.args[1:], *(keyword.value for keyword in node.keywords if keyword.arg in ("dim", "axis"))]
    return node.args[0] if [ast.unparse(dim) for dim in dims] in (["-1"], ["1"]) else None


def _call_of_torch(function: str, parts: ast.expr) -> ast.Call:
    return ast.Call(ast.Attribute(ast.Name("torch", ast.Load()), function, ast.Load()), [parts, number(-1)], [])


def _subscript(value: ast.expr, part: ast.Slice) -> ast.Subscript:
    return ast.Subscript(value, ast.Tuple([ast.Constant(...), part], ast.Load()), ast.Load())
