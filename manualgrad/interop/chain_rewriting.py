"""Calls of layers, one on the result of the other, in a function's syntax tree, which are computed together.

    self.relu(self.conv(x))    becomes    run_links((self.relu, self.conv), x)

    x = self.conv(x)           becomes    y = run_links_as_one((self.relu, self.conv), x)
    x = self.relu(x)                      if y is None:
                                              x = self.conv(x)
                                              x = self.relu(x)
                                          else:
                                              x, y = y, None

What the tree tells only decides which calls are looked at. When they are made, ``network/call_chains.py`` decides
whether somebody could see that they are computed together; if so, they are made as they were written.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import CodeType
from typing import Any

from torch import Tensor

from manualgrad.interop import operations
from manualgrad.interop.links import LINKS, LINKS_AS_ONE, REPLACEMENT_OF, REPLACEMENT_OF_METHOD
from manualgrad.network.call_chains import CHAINS, LAYER, POOL, RELU

RESULT = "_manualgrad_result"
ROLES_OF_OURS: dict[Callable[..., Any], str] = {
    operations.relu: RELU, operations.relu_: RELU, operations.max_pool2d: POOL,
}  # fmt: skip
ROLE = "manualgrad_role"  # attribute of the call's node that the rewriter of functional calls sets
NESTED_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
# Statements that may go on after an exception, with the value that a variable has then.
CATCHING = (ast.Try, ast.With, ast.AsyncWith, *([ast.TryStar] if hasattr(ast, "TryStar") else []))


@dataclass(frozen=True)
class Link:
    """A call in the tree.

    Attributes:
        role: LAYER, SOURCE, RELU or POOL.
        node: expression that :func:`~manualgrad.interop.links.run_links` takes as a link.
        input: the input of the call.
        is_repeatable: True if ``node`` may be evaluated twice.
    """

    role: str
    node: ast.expr
    input: ast.expr
    is_repeatable: bool


class ChainRewriter(ast.NodeTransformer):
    """Rewrites chains in the body of one function, not in the functions inside of it.

    Attributes:
        used_names: names of ``links.RUNTIME`` in the new tree.
    """

    def __init__(self, code: CodeType, own_name: str | None, roles: Mapping[str, str]) -> None:
        self.own_name, self.roles, self.used_names = own_name, roles, set[str]()
        self.local_names = set(code.co_varnames) - set(code.co_cellvars)
        self.may_catch = False

    def rewrite(self, node: Any) -> Any:
        if isinstance(node, ast.Lambda):
            node.body = self.visit(node.body)
        else:
            node.body = self._statements(node.body)
        return node

    def visit(self, node: ast.AST) -> Any:
        return node if isinstance(node, NESTED_FUNCTIONS) else super().visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        links = self._longest_chain(self._links(node))
        if not links:
            return self.generic_visit(node)
        return self._call(LINKS, links, self.visit(links[-1].input), node)

    # ------------------------------------------------------------------------------------------ one expression

    def _links(self, node: ast.expr) -> list[Link]:
        """The calls that ``node`` is made of, as far as they have roles, the outermost first."""
        links: list[Link] = []
        while isinstance(node, ast.Call) and (link := self._link(node)):
            links.append(link)
            node = link.input
        return links

    def _longest_chain(self, links: list[Link]) -> list[Link]:
        """The first links, if they are a chain."""
        for length in (3, 2):
            if _is_chain(links[:length]):
                return links[:length]
        return []

    def _link(self, node: ast.Call) -> Link | None:
        function, role = node.func, getattr(node, ROLE, None)
        if role and isinstance(function, ast.Call) and _is_name(function.func, REPLACEMENT_OF_METHOD):
            return None if node.args or node.keywords else Link(role, function.args[1], function.args[0], True)
        if not node.args or isinstance(node.args[0], ast.Starred):
            return None
        if role:
            if not all(map(_is_constant, [*node.args[1:], *(k.value for k in node.keywords if k.arg)])):
                return None
            if not all(k.arg for k in node.keywords):
                return None
            return Link(role, _link_with_arguments(node), node.args[0], True)
        if len(node.args) > 1 or node.keywords:
            return None
        if isinstance(function, ast.Attribute) and _is_name(function.value, self.own_name):
            role = self.roles.get(function.attr)
            return Link(role, function, node.args[0], True) if role else None
        if isinstance(function, ast.Attribute) and hasattr(Tensor, function.attr):
            return None
        held = function.args[0] if _is_call_of(function, REPLACEMENT_OF) else function  # type: ignore[attr-defined]
        is_local = isinstance(root := _root(held), ast.Name) and root.id in self.local_names
        return Link(LAYER, function, node.args[0], isinstance(held, ast.Name)) if is_local else None

    def _call(self, name: str, links: list[Link], x: ast.expr, place: ast.AST) -> ast.Call:
        self.used_names.add(name)
        nodes = ast.Tuple([link.node for link in links], ast.Load())
        return ast.copy_location(ast.Call(ast.Name(name, ast.Load()), [nodes, x], []), place)

    # -------------------------------------------------------------------------------------------- statements

    def generic_visit(self, node: ast.AST) -> ast.AST:
        outer, self.may_catch = self.may_catch, self.may_catch or isinstance(node, CATCHING)
        for field, value in ast.iter_fields(node):
            if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
                setattr(node, field, self._statements(value))
            elif isinstance(value, list):
                setattr(node, field, [self.visit(item) if isinstance(item, ast.AST) else item for item in value])
            elif isinstance(value, ast.AST):
                setattr(node, field, self.visit(value))
        self.may_catch = outer
        return node

    def _statements(self, body: list[ast.stmt]) -> list[ast.stmt]:
        result: list[ast.stmt] = []
        while body:
            joined = next((j for length in (3, 2) if (j := self._join(body[:length]))), None)
            result += joined[1] if joined else [self.visit(body[0])]
            body = body[joined[0] if joined else 1 :]
        return result

    def _join(self, body: list[ast.stmt]) -> tuple[int, list[ast.stmt]] | None:
        """(number of statements, what replaces them) if the statements are one chain, whose results have one name."""
        variable = _target(body[0])
        if self.may_catch or len(body) < 2 or variable not in self.local_names:
            return None
        links: list[Link] = []
        for n, statement in enumerate(body):
            is_last = n == len(body) - 1
            if not (_target(statement) == variable or (is_last and isinstance(statement, ast.Return))):
                return None
            own_links = self._links(statement.value)  # type: ignore[attr-defined]  # an Assign or a Return
            if not own_links or not (n == 0 or _is_name(own_links[-1].input, variable)):
                return None
            links = own_links + links
        x = links[-1].input
        if not _is_chain(links) or not all(link.is_repeatable for link in links):
            return None
        if not (isinstance(x, ast.Name) and x.id in self.local_names):
            return None
        first, last = body[0], body[-1]
        result = ast.Name(RESULT, ast.Store())
        attempt = ast.copy_location(
            ast.Assign([result], copy.deepcopy(self._call(LINKS_AS_ONE, links, x, first))), first
        )
        test = ast.Compare(_load(RESULT), [ast.Is()], [ast.Constant(None)])
        end: ast.stmt = (
            ast.Return(_load(RESULT)) if isinstance(last, ast.Return)
            else ast.Assign(
                [ast.Tuple([ast.Name(str(variable), ast.Store()), ast.Name(RESULT, ast.Store())], ast.Store())],
                ast.Tuple([_load(RESULT), ast.Constant(None)], ast.Load()),
            )
        )  # fmt: skip
        as_written = [*self._statements(body[:-1]), self.visit(last)]
        return len(body), [
            attempt,
            ast.copy_location(ast.If(test, as_written, [ast.copy_location(end, last)]), first),
        ]


def _is_chain(links: list[Link]) -> bool:
    return tuple(link.role for link in reversed(links)) in CHAINS


def _is_name(node: ast.expr, name: str | None) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _is_call_of(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Call) and _is_name(node.func, name)


def _is_constant(node: ast.expr) -> bool:
    if isinstance(node, (ast.Tuple, ast.List)):
        return all(map(_is_constant, node.elts))
    return isinstance(node, ast.Constant)


def _root(node: ast.expr) -> ast.expr:
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        node = node.value
    return node


def _load(name: str) -> ast.Name:
    return ast.Name(name, ast.Load())


def _target(statement: ast.stmt) -> str | None:
    """The name that the statement gives the result of an expression, if that is all it does."""
    if (
        isinstance(statement, ast.Assign)
        and len(statement.targets) == 1
        and isinstance(statement.targets[0], ast.Name)
    ):
        return statement.targets[0].id
    return None


def _link_with_arguments(node: ast.Call) -> ast.expr:
    """The callee, or (callee, arguments behind the input, options)."""
    if len(node.args) == 1 and not node.keywords:
        return node.func
    options = ast.Dict([ast.Constant(k.arg) for k in node.keywords], [k.value for k in node.keywords])
    return ast.copy_location(ast.Tuple([node.func, ast.Tuple(node.args[1:], ast.Load()), options], ast.Load()), node)
