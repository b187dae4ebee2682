"""Edits that insert a step, a factor or a term."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from compare.gradients.source_changes.called_functions import CalledFunction
from compare.gradients.source_changes.edits import Edit, Site
from compare.gradients.source_changes.expression_edits import FACTOR, LEFT_OUT, MISSING, name, number

STEPS = ("exp", "log", "sqrt", "abs", "sign", "reciprocal", "sigmoid", "tanh", "cos", "sin", "square", "rsqrt")
OPERATORS: tuple[tuple[ast.operator, str], ...] = (
    (ast.Mult(), LEFT_OUT), (ast.Add(), MISSING), (ast.Sub(), MISSING), (ast.Div(), LEFT_OUT),
)  # fmt: skip


def method(node: ast.expr, called: str, *arguments: ast.expr, **keywords: ast.expr) -> ast.Call:
    """The call of a tensor's method."""
    return ast.Call(
        ast.Attribute(node, called, ast.Load()), list(arguments), [ast.keyword(k, v) for k, v in keywords.items()]
    )


def joined(left: ast.expr, operator: ast.operator, right: ast.expr) -> ast.expr:
    """A binary operation."""
    return ast.BinOp(left, operator, right)


def step_edits(site: Site, called: CalledFunction, dims: int) -> Iterator[Edit]:
    """An expression with a step after it: negated, transposed, summed, a function of it."""
    node = site.node
    if not is_value(site, called):
        return
    if not isinstance(site.ancestors[-1], ast.UnaryOp):
        yield site.edit(ast.UnaryOp(ast.USub(), node), 1, FACTOR)
    if dims >= 2:
        yield site.edit(ast.Attribute(node, "mT", ast.Load()), 1, "transposed")
    yield site.edit(method(node, "conj"), 1, "conjugated")
    one_minus = joined(number(1), ast.Sub(), node)
    yield site.edit(one_minus, 2, LEFT_OUT)
    yield site.edit(joined(number(1), ast.Sub(), joined(node, ast.Pow(), number(2))), 3, LEFT_OUT)
    yield site.edit(joined(number(1), ast.Add(), joined(node, ast.Pow(), number(2))), 3, LEFT_OUT)
    yield site.edit(joined(node, ast.Mult(), one_minus), 3, LEFT_OUT)
    for step in STEPS:
        yield site.edit(method(node, step), 2, LEFT_OUT)
    yield site.edit(method(node, "detach"), 2, LEFT_OUT)
    yield site.edit(method(node, "clamp", min=number(0)), 2, LEFT_OUT)
    for comparison in (ast.Gt(), ast.Lt(), ast.GtE()):
        mask = ast.Compare(node, [comparison], [number(0)])
        yield site.edit(joined(node, ast.Mult(), mask), 3, LEFT_OUT)
    if dims >= 2:
        for half in ("tril", "triu"):
            yield site.edit(method(node, half), 2, "wrong half")
            yield site.edit(method(node, half, number(1 if half == "triu" else -1)), 2, "wrong half")
        yield site.edit(joined(node, ast.Add(), ast.Attribute(node, "mT", ast.Load())), 2, MISSING)
        both = joined(node, ast.Add(), ast.Attribute(node, "mT", ast.Load()))
        yield site.edit(joined(both, ast.Div(), number(2)), 2, "wrong half")
    for dim in range(dims):
        for summed in ("sum", "mean"):
            yield site.edit(method(node, summed, number(dim), keepdim=ast.Constant(True)), 2, "wrong sum")
            yield site.edit(method(node, summed, number(dim)), 2, "wrong sum")
        mean = method(node, "mean", number(dim), keepdim=ast.Constant(True))
        yield site.edit(joined(node, ast.Sub(), mean), 3, MISSING)
        axes = ast.List([number(dim)], ast.Load())
        yield site.edit(method(node, "flip", axes), 2, "flipped")
        yield site.edit(method(node, "cumsum", number(dim)), 2, LEFT_OUT)
        yield site.edit(method(method(method(node, "flip", axes), "cumsum", number(dim)), "flip", axes), 3, LEFT_OUT)
        for shift in (1, -1):
            yield site.edit(method(node, "roll", number(shift), number(dim)), 2, "shifted")
        yield site.edit(method(node, "unsqueeze", number(dim)), 2, LEFT_OUT)
    yield site.edit(method(node, "sum"), 2, "wrong sum")


def operand_edits(site: Site, called: CalledFunction) -> Iterator[Edit]:
    """An expression times, divided by, plus or minus a local tensor or a function of one; or times a number."""
    node = site.node
    if not is_value(site, called) or not is_whole(site):
        return
    for other in called.tensor_names():
        if isinstance(node, ast.Name) and node.id == other:
            continue
        for operator, kind in OPERATORS:
            yield site.edit(joined(node, operator, name(other)), 2, kind)
        for factor in functions_of(name(other)):
            yield site.edit(joined(node, ast.Mult(), factor), 3, LEFT_OUT)
            yield site.edit(joined(node, ast.Div(), factor), 4, LEFT_OUT)
            yield site.edit(joined(node, ast.Add(), factor), 4, MISSING)
            yield site.edit(joined(node, ast.Sub(), factor), 4, MISSING)
    for value in (2, 0.5, 3, 4, 0.25):
        yield site.edit(joined(number(value), ast.Mult(), node), 2, "constant factor")
    for factor in sizes(called):
        yield site.edit(joined(node, ast.Div(), factor), 3, "constant factor")
        yield site.edit(joined(node, ast.Mult(), factor), 3, "constant factor")


def product_edits(site: Site, called: CalledFunction) -> Iterator[Edit]:
    """An expression plus or minus the product of two local tensors."""
    if not is_value(site, called) or not is_whole(site):
        return
    tensors = called.tensor_names()
    for n, first in enumerate(tensors):
        for second in tensors[n:]:
            product = joined(name(first), ast.Mult(), name(second))
            for operator in (ast.Add(), ast.Sub()):
                yield site.edit(joined(site.node, operator, product), 5, MISSING)
            yield site.edit(joined(site.node, ast.Mult(), product), 5, LEFT_OUT)
            yield site.edit(joined(site.node, ast.Div(), product), 5, LEFT_OUT)
            for dim in (0, -1):
                summed = method(product, "sum", number(dim), keepdim=ast.Constant(True))
                yield site.edit(joined(site.node, ast.Sub(), summed), 5, MISSING)
                for third in tensors:
                    for operator in (ast.Add(), ast.Sub()):
                        term = joined(name(third), ast.Mult(), summed)
                        yield site.edit(joined(site.node, operator, term), 6, MISSING)


def functions_of(node: ast.expr) -> Iterator[ast.expr]:
    """Factors that formulas have: powers, 1 - y, 1 - y², masks."""
    square = joined(node, ast.Pow(), number(2))
    yield joined(number(1), ast.Sub(), node)
    yield square
    yield joined(number(1), ast.Sub(), square)
    yield joined(number(1), ast.Add(), square)
    yield joined(number(1), ast.Add(), node)
    yield joined(node, ast.Mult(), joined(number(1), ast.Sub(), node))
    for called in ("exp", "sqrt", "sigmoid", "sign", "cos", "sin", "log", "conj", "abs", "tanh"):
        yield method(node, called)
    for comparison in (ast.Gt(), ast.Lt(), ast.GtE(), ast.LtE()):
        yield ast.Compare(node, [comparison], [number(0)])
    yield ast.UnaryOp(ast.Invert(), node)


def sizes(called: CalledFunction) -> Iterator[ast.expr]:
    """Numbers that formulas divide by: lengths of dimensions, their roots, and local numbers."""
    seen: set[Any] = set()
    for local, value in called.local_values.items():
        if isinstance(value, Tensor):
            for dim, length in enumerate(value.shape):
                if length > 1 and length not in seen:
                    seen.add(length)
                    size = ast.Subscript(ast.Attribute(name(local), "shape", ast.Load()), number(dim), ast.Load())
                    yield size
                    yield joined(size, ast.Pow(), number(0.5))
                    yield ast.BinOp(size, ast.Sub(), number(1))
            if value.dim() > 1 and value.numel() not in seen:
                seen.add(value.numel())
                yield method(name(local), "numel")
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and value not in (0, 1):
            if math.isfinite(value):
                yield name(local)


def is_value(site: Site, called: CalledFunction) -> bool:
    """True for an expression that may be a tensor."""
    node, parent = site.node, site.ancestors[-1]
    if isinstance(node, (ast.Constant, ast.Tuple, ast.List, ast.Slice, ast.keyword, ast.Starred, ast.Compare, ast.BoolOp)):
        return False
    if not isinstance(node, ast.expr) or not isinstance(getattr(node, "ctx", ast.Load()), ast.Load):
        return False
    if isinstance(parent, ast.Call) and parent.func is node:
        return False
    if isinstance(parent, ast.Attribute) and isinstance(node, ast.Name):
        return node.id in called.tensor_names()  # x in x.sum(), not torch in torch.sum
    if isinstance(node, ast.Attribute) and node.attr in ("saved_tensors", "needs_input_grad", "shape"):
        return False
    if isinstance(node, ast.Name):
        return isinstance(called.local_values.get(node.id), Tensor)
    if isinstance(parent, ast.Subscript) and parent.slice is node:
        return False
    return True


def is_whole(site: Site) -> bool:
    """True for a whole right-hand side, argument or returned value, or an operand of a sum."""
    parent = site.ancestors[-1]
    if isinstance(parent, ast.BinOp):
        return isinstance(parent.op, (ast.Add, ast.Sub, ast.Div, ast.MatMult))
    return isinstance(
        parent, (ast.Return, ast.Assign, ast.AugAssign, ast.Tuple, ast.Lambda, ast.Call, ast.IfExp, ast.Attribute,
                 ast.AnnAssign),
    )
