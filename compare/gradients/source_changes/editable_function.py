"""The syntax tree of a function that is in use, and the exchange of its code for an edited one."""

from __future__ import annotations

import ast
import linecache
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import CodeType

from compare.gradients.source_changes.called_functions import CalledFunction

FunctionNode = ast.FunctionDef | ast.Lambda
WRAPPER = "_function_with_free_variables"


class SourceUnknown(Exception):
    """There is no source text whose code is the one that runs."""


class EditableFunction:
    """A function of the user with its syntax tree, which may be edited in place.

    Attributes:
        node: the definition; :meth:`exchanged` compiles it as it is then.

    Raises:
        SourceUnknown: there is no source, or it has changed since it was compiled, or a construct is not supported.
    """

    def __init__(self, called: CalledFunction) -> None:
        self.called = called
        self.code = called.code
        if "__class__" in self.code.co_freevars:
            raise SourceUnknown
        tree = _tree(self.code.co_filename)
        for node in ast.walk(tree):
            if _may_be(node, self.code):
                self.node: FunctionNode = node  # type: ignore[assignment]
                compiled = self._compile(keeps_free_variables=False)
                if compiled is not None and _is_same(compiled, self.code):
                    return
        raise SourceUnknown

    def compiled(self) -> CodeType | None:
        """Code of the definition as it is now; None if it is not valid, or cannot take the place of the present one."""
        code = self._compile(keeps_free_variables=True)
        return code if code is not None and code.co_freevars == self.code.co_freevars else None

    @contextmanager
    def exchanged(self, code: CodeType) -> Iterator[None]:
        """Let every function object with the present code run ``code`` instead."""
        try:
            for function in self.called.functions:
                function.__code__ = code
            yield
        finally:
            for function in self.called.functions:
                function.__code__ = self.code

    def _compile(self, *, keeps_free_variables: bool) -> CodeType | None:
        free = self.code.co_freevars
        definition: ast.stmt
        names = ast.Tuple([ast.Name(name, ast.Load()) for name in free], ast.Load())
        if isinstance(self.node, ast.Lambda):
            body = self.node.body
            if free and keeps_free_variables:
                body = ast.IfExp(ast.Constant(True), body, names)
            definition = ast.Expr(ast.Lambda(self.node.args, body))
        else:
            statements = list(self.node.body)
            if free and keeps_free_variables:
                statements.append(ast.If(ast.Constant(False), [ast.Expr(names)], []))
            definition = ast.FunctionDef(self.node.name, self.node.args, statements, [], None, **_no_type_parameters())
        body_of_module: list[ast.stmt] = [definition]
        if free:
            arguments = ast.arguments([], [ast.arg(name) for name in free], None, [], [], None, [])
            body_of_module = [ast.FunctionDef(WRAPPER, arguments, [definition], [], None, **_no_type_parameters())]
        module = ast.Module(body_of_module, [])
        ast.fix_missing_locations(module)
        try:
            whole = compile(
                module, self.code.co_filename, "exec", self.code.co_flags & _future_flags(), dont_inherit=True
            )
        except (SyntaxError, ValueError, TypeError):  # an edit that is no Python, such as None as the target of +=
            return None
        return next(_inner_codes(whole, self.code.co_name), None)


def _no_type_parameters() -> dict[str, list[ast.AST]]:
    return {"type_params": []} if "type_params" in ast.FunctionDef._fields else {}


def _future_flags() -> int:
    import __future__

    return __future__.annotations.compiler_flag


def _inner_codes(code: CodeType, name: str) -> Iterator[CodeType]:
    for const in code.co_consts:
        if isinstance(const, CodeType):
            if const.co_name == name:
                yield const
            if const.co_name == WRAPPER:
                yield from _inner_codes(const, name)


_trees: dict[str, tuple[list[str], ast.Module]] = {}


def _tree(file: str) -> ast.Module:
    lines = linecache.getlines(file)
    if not lines:
        raise SourceUnknown
    if file not in _trees or _trees[file][0] != lines:
        try:
            _trees[file] = lines, ast.parse("".join(lines))
        except SyntaxError:
            raise SourceUnknown from None
    return _trees[file][1]


def _may_be(node: ast.AST, code: CodeType) -> bool:
    if isinstance(node, ast.Lambda):
        return code.co_name == "<lambda>" and node.lineno == code.co_firstlineno
    if isinstance(node, ast.FunctionDef) and node.name == code.co_name:
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        return first == code.co_firstlineno
    return False


def _is_same(a: CodeType, b: CodeType) -> bool:
    """True if two codes do the same; line numbers and names of outer functions do not matter."""

    def plain(constants: Sequence[object]) -> list[object]:
        return [(type(c), repr(c)) for c in constants if not isinstance(c, CodeType)]

    inner = [[c for c in code.co_consts if isinstance(c, CodeType)] for code in (a, b)]
    return (
        a.co_code == b.co_code
        and (a.co_names, a.co_varnames, a.co_freevars, a.co_cellvars)
        == (b.co_names, b.co_varnames, b.co_freevars, b.co_cellvars)
        and plain(a.co_consts) == plain(b.co_consts)
        and len(inner[0]) == len(inner[1])
        and all(_is_same(x, y) for x, y in zip(*inner, strict=True))
    )
