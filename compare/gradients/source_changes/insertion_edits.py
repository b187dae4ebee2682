"""Edits that insert a step, a factor, a term or a mask."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import torch

from compare.gradients.source_changes.called_functions import CalledFunction, is_number
from compare.gradients.source_changes.edits import Edit, Site
from compare.gradients.source_changes.expression_edits import method, name, number

MAX_FACTORS = 6  # local tensors whose products are tried: their number grows with its cube
STEPS = (
    "exp",
    "log",
    "sqrt",
    "abs",
    "sign",
    "reciprocal",
    "sigmoid",
    "tanh",
    "cos",
    "sin",
    "square",
    "detach",
    "nan_to_num",
)
FUNCTIONS = ("exp", "sqrt", "sigmoid", "sign", "cos", "sin", "log", "conj", "abs", "tanh")
OPERATORS: tuple[ast.operator, ...] = (ast.Mult(), ast.Add(), ast.Sub(), ast.Div())
COMPARISONS: tuple[ast.cmpop, ...] = (ast.Gt(), ast.Lt(), ast.GtE(), ast.LtE())
NO_VALUES = (ast.Constant, ast.Tuple, ast.List, ast.Slice, ast.Starred, ast.Compare, ast.BoolOp, ast.JoinedStr)


def step_edits(site: Site, called: CalledFunction, dims: int) -> Iterator[Edit]:
    """An expression with a step after it: negated, transposed, summed, a function of it.

    Args:
        dims: the largest number of dimensions of a tensor here.
    """
    node = site.node
    if not is_value(site, called):
        return
    if not isinstance(site.ancestors[-1], ast.UnaryOp):
        yield site.edit(ast.UnaryOp(ast.USub(), node), 2)
    yield site.edit(method(node, "conj"), 2)
    yield site.edit(method(node, "contiguous"), 2)
    one, square = number(1), ast.BinOp(node, ast.Pow(), number(2))
    yield site.edit(ast.BinOp(one, ast.Sub(), node), 3)
    yield site.edit(ast.BinOp(one, ast.Sub(), square), 4)
    yield site.edit(ast.BinOp(one, ast.Add(), square), 4)
    yield site.edit(ast.BinOp(node, ast.Mult(), ast.BinOp(one, ast.Sub(), node)), 4)
    for step in STEPS:
        yield site.edit(method(node, step), 3)
    yield site.edit(method(node, "sum"), 3)
    if isinstance(node, ast.Name) and called.tensors[node.id].dtype == torch.int64:
        yield site.edit(method(node, "argsort"), 1)  # the inverse of a permutation
        yield site.edit(method(node, "argsort", number(-1)), 2)
    yield site.edit(method(node, "clamp", min=number(0)), 3)
    if dims >= 2:
        yield from _matrix_edits(site)
    for dim in range(dims):
        yield from _edits_along(site, dim)
    shapes = {tensor.shape: local for local, tensor in called.tensors.items() if tensor.dim()}
    for local in shapes.values():
        shape = ast.Attribute(name(local), "shape", ast.Load())
        for step in ("sum_to_size", "reshape", "expand"):
            yield site.edit(method(node, step, shape), 3)


def _matrix_edits(site: Site) -> Iterator[Edit]:
    node = site.node
    transposed = ast.Attribute(node, "mT", ast.Load())
    yield site.edit(transposed, 2)
    both = ast.BinOp(node, ast.Add(), transposed)
    yield site.edit(both, 3)
    yield site.edit(ast.BinOp(both, ast.Div(), number(2)), 3)
    for half, diagonal in (("tril", -1), ("triu", 1)):
        yield site.edit(method(node, half), 3)
        yield site.edit(method(node, half, number(diagonal)), 3)


def _edits_along(site: Site, dim: int) -> Iterator[Edit]:
    node, at = site.node, number(dim)
    mean = method(node, "mean", at, keepdim=ast.Constant(True))
    for summed in ("sum", "mean"):
        yield site.edit(method(node, summed, at, keepdim=ast.Constant(True)), 3)
        yield site.edit(method(node, summed, at), 3)
    yield site.edit(ast.BinOp(node, ast.Sub(), mean), 4)
    axes = ast.List([at], ast.Load())
    yield site.edit(method(node, "flip", axes), 3)
    yield site.edit(method(node, "cumsum", at), 3)
    yield site.edit(method(method(method(node, "flip", axes), "cumsum", at), "flip", axes), 4)
    for shift in (1, -1):
        yield site.edit(method(node, "roll", number(shift), at), 3)
    yield site.edit(method(node, "unsqueeze", at), 3)


def factor_edits(site: Site, called: CalledFunction) -> Iterator[Edit]:
    """An expression times a local tensor, the most frequent of what is forgotten."""
    node = site.node
    if is_value(site, called) and is_whole(site):
        for other in called.tensors:
            if not (isinstance(node, ast.Name) and node.id == other):
                yield site.edit(ast.BinOp(node, ast.Mult(), name(other)), 3)


def operand_edits(site: Site, called: CalledFunction) -> Iterator[Edit]:
    """An expression divided by, plus or minus a local tensor, or times one of another shape or a number."""
    node = site.node
    if not is_value(site, called) or not is_whole(site):
        return
    for other in called.tensors:
        if isinstance(node, ast.Name) and node.id == other:
            continue
        for operator in _operators(called, other):
            if not isinstance(operator, ast.Mult):
                yield site.edit(ast.BinOp(node, operator, name(other)), 3)
            for shaped in _broadcast(called, other):
                yield site.edit(ast.BinOp(node, operator, shaped), 4)
    for value in (2, 0.5, 3, 4, 0.25):
        yield site.edit(ast.BinOp(number(value), ast.Mult(), node), 3)  # as the sizes, which may be equal to it
    for size in _sizes(called):
        cost = 4 if isinstance(size, ast.BinOp) and isinstance(size.op, ast.Sub) else 3
        yield site.edit(ast.BinOp(node, ast.Div(), size), cost)
        yield site.edit(ast.BinOp(node, ast.Mult(), size), cost)


def _operators(called: CalledFunction, *others: str) -> list[ast.operator]:
    """Operators with tensors on the right: nothing is divided by an incoming gradient, which may be 0."""
    may_divide = called.incoming_names.isdisjoint(others)
    return [each for each in OPERATORS if may_divide or not isinstance(each, ast.Div)]


def function_edits(site: Site, called: CalledFunction) -> Iterator[Edit]:
    """An expression times, divided by, plus or minus a function of a local tensor."""
    node = site.node
    if not is_value(site, called) or not is_whole(site):
        return
    for other in called.tensors:
        if isinstance(node, ast.Name) and node.id == other:
            continue
        for factor in _functions_of(name(other)):
            for operator in _operators(called, other):
                yield site.edit(ast.BinOp(node, operator, factor), 4)


def product_edits(site: Site, called: CalledFunction) -> Iterator[Edit]:
    """An expression plus or minus the product of two local tensors, or a third one times its sum."""
    if not is_value(site, called) or not is_whole(site):
        return
    tensors = list(called.tensors)
    if len(tensors) > MAX_FACTORS:
        return
    for n, first in enumerate(tensors):
        for second in tensors[n:]:
            product = ast.BinOp(name(first), ast.Mult(), name(second))
            for operator in _operators(called, first, second):
                yield site.edit(ast.BinOp(site.node, operator, product), 5)
            for dim in (0, -1):
                summed = method(product, "sum", number(dim), keepdim=ast.Constant(True))
                for third in (summed, *(ast.BinOp(name(other), ast.Mult(), summed) for other in tensors)):
                    for operator in (ast.Add(), ast.Sub()):
                        yield site.edit(ast.BinOp(site.node, operator, third), 6)


def _broadcast(called: CalledFunction, local: str) -> Iterator[ast.expr]:
    """A local tensor with one or two more dimensions, where others have more."""
    missing = max(tensor.dim() for tensor in called.tensors.values()) - called.tensors[local].dim()
    for count in range(1, min(missing, 2) + 1):
        index = [ast.Constant(...), *[ast.Constant(None)] * count]
        yield ast.Subscript(name(local), ast.Tuple(index, ast.Load()), ast.Load())
    if missing == 2:
        index = [ast.Slice(), ast.Constant(None)]
        yield ast.Subscript(name(local), ast.Tuple([*index], ast.Load()), ast.Load())


def _functions_of(node: ast.expr) -> Iterator[ast.expr]:
    """Factors that formulas have: powers, 1 - y, 1 - y², masks."""
    one, square = number(1), ast.BinOp(node, ast.Pow(), number(2))
    yield ast.BinOp(one, ast.Sub(), node)
    yield square
    yield ast.BinOp(one, ast.Sub(), square)
    yield ast.BinOp(one, ast.Add(), square)
    yield ast.BinOp(one, ast.Add(), node)
    yield ast.BinOp(node, ast.Mult(), ast.BinOp(one, ast.Sub(), node))
    for function in FUNCTIONS:
        yield method(node, function)
    for comparison in COMPARISONS:
        yield ast.Compare(node, [comparison], [number(0)])
    yield ast.UnaryOp(ast.Invert(), node)


def _sizes(called: CalledFunction) -> Iterator[ast.expr]:
    """Numbers that formulas divide by: lengths of dimensions, their roots, and named numbers."""
    known: set[int] = set()
    for local, value in called.tensors.items():
        for dim, length in enumerate(value.shape):
            if length > 1 and length not in known:
                known.add(length)
                size = ast.Subscript(ast.Attribute(name(local), "shape", ast.Load()), number(dim), ast.Load())
                yield size
                yield ast.BinOp(size, ast.Pow(), number(0.5))
                yield ast.BinOp(size, ast.Sub(), number(1))
        if value.dim() > 1 and value.numel() not in known:
            known.add(value.numel())
            yield method(name(local), "numel")
    for local, factor in called.numbers.items():
        if factor not in (0, 1):
            yield name(local)
            yield ast.BinOp(name(local), ast.Pow(), number(2))


def is_value(site: Site, called: CalledFunction) -> bool:
    """True for an expression that may be a tensor."""
    node, parent = site.node, site.ancestors[-1]
    if not isinstance(node, ast.expr) or isinstance(node, NO_VALUES):
        return False
    if not isinstance(getattr(node, "ctx", ast.Load()), ast.Load):
        return False
    if isinstance(parent, ast.Call) and parent.func is node:
        return False
    if isinstance(parent, ast.Subscript) and parent.slice is node:
        return False
    if isinstance(node, ast.Attribute) and node.attr in ("saved_tensors", "needs_input_grad", "shape"):
        return False
    if isinstance(node, ast.Name):
        return node.id in called.tensors
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):  # a number that ctx has, say
        return not is_number(getattr(called.local_values.get(node.value.id), node.attr, None))
    return True


def is_whole(site: Site) -> bool:
    """True for a whole right-hand side, argument or returned value, or an operand of a sum or quotient."""
    parent = site.ancestors[-1]
    if isinstance(parent, ast.BinOp):
        return isinstance(parent.op, (ast.Add, ast.Sub, ast.Div, ast.MatMult))
    wholes = (ast.Return, ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Tuple, ast.Lambda, ast.Call, ast.IfExp)
    return isinstance(parent, (*wholes, ast.Attribute))
