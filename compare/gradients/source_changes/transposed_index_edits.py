"""Edits that turn a choice of elements by indices into its transpose, and back."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import torch
from torch import Tensor

from compare.gradients.source_changes.called_functions import CalledFunction
from compare.gradients.source_changes.edits import Edit, Site
from compare.gradients.source_changes.expression_edits import method, name, number

ADDS = {"gather": "scatter_add", "index_select": "index_add"}
TAKES = {"scatter_add": "gather", "scatter_add_": "gather", "index_add": "index_select", "index_add_": "index_select"}


def transposed_index_edits(site: Site, called: CalledFunction) -> Iterator[Edit]:
    """Elements that are taken by indices are added at the indices, and the other way around."""
    yield from _added_at_the_index(site)
    node = site.node
    indices = _integer_tensors(called)
    if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        own = {each.id for part in parts for each in ast.walk(part) if isinstance(each, ast.Name)} & set(indices)
        if own and not any(isinstance(part, ast.Slice) for part in parts):
            for index in indices:
                for zeros in _zeros(node.value, 0, called):
                    yield site.edit(method(zeros, "index_add", number(0), name(index), node.value), 3)
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return
    step, arguments = node.func.attr, list(node.args)
    is_function = isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"
    operands = arguments if is_function else [node.func.value, *arguments]
    if step in ADDS and len(operands) == 3:
        taken, dim, index = operands
        for zeros in _zeros(taken, dim.value if isinstance(dim, ast.Constant) else 0, called):
            yield site.edit(method(zeros, ADDS[step], dim, index, taken), 2)
    if step in TAKES and len(operands) == 4:
        _, dim, index, added = operands
        yield site.edit(method(added, TAKES[step], dim, index), 2)


def _added_at_the_index(site: Site) -> Iterator[Edit]:
    """``out[i] = g[order[i]]``: ``out[order[i]] = g[i]`` or ``out[order[i]] += g[i]``."""
    node = site.node
    if not isinstance(node, ast.Assign) or len(node.targets) != 1:
        return
    target, value = node.targets[0], node.value
    if isinstance(target, ast.Subscript) and isinstance(value, ast.Subscript):
        moved = ast.Subscript(target.value, value.slice, ast.Store())
        taken = ast.Subscript(value.value, target.slice, ast.Load())
        yield site.edit(ast.Assign([moved], taken), 1)
        yield site.edit(ast.AugAssign(moved, ast.Add(), taken), 2)


def _integer_tensors(called: CalledFunction) -> dict[str, Tensor]:
    """Local and global tensors of whole numbers."""
    scope = called.functions[0].__globals__
    of_globals = {each: scope[each] for each in called.code.co_names if isinstance(scope.get(each), Tensor)}
    known = of_globals | called.tensors
    return {each: tensor for each, tensor in known.items() if tensor.dtype == torch.int64 and tensor.dim()}


def _zeros(taken: ast.expr, dim: int, called: CalledFunction) -> Iterator[ast.expr]:
    """Zeros to which something may be added: as a local tensor, of a known shape, or of a known length in ``dim``."""
    shapes = {tensor.shape: local for local, tensor in called.tensors.items() if tensor.is_floating_point()}
    for local in shapes.values():
        yield ast.Call(ast.Attribute(name("torch"), "zeros_like", ast.Load()), [name(local)], [])
    for local, value in called.values.items():
        if isinstance(value, torch.Size) and value not in shapes:
            yield method(taken, "new_zeros", name(local))
    lengths = {value: local for local, value in called.numbers.items() if isinstance(value, int) and value > 1}
    for local in lengths.values() if dim == 0 else ():
        others = ast.Subscript(ast.Attribute(taken, "shape", ast.Load()), ast.Slice(number(1), None), ast.Load())
        yield method(taken, "new_zeros", name(local), ast.Starred(others, ast.Load()))
