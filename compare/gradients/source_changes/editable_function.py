"""The syntax tree of a function that is in use, and the exchange of its code for an edited one."""

from __future__ import annotations
import __future__

import ast
import copy
import linecache
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import CodeType

from compare.gradients.source_changes.called_functions import CalledFunction

FunctionNode = ast.FunctionDef | ast.Lambda
WRAPPER = "_function_with_free_variables"
_trees: dict[str, tuple[list[str], ast.Module]] = {}  # of files, with the lines that were parsed


class SourceUnknown(Exception):
    """There is no source text whose code is the one that runs."""


class EditableFunction:
    """A function of the user with its syntax tree, which may be edited in place.

    Attributes:
        node: the definition; :meth:`compiled` compiles it as it is then.

    Raises:
        SourceUnknown: there is no source, it has changed since it was compiled, or a construct is not supported.
    """

    node: FunctionNode

    def __init__(self, called: CalledFunction) -> None:
        self.called = called
        self.code = called.code
        tree = _parse(self.code.co_filename)
        # Python compiles a call of an imported module's function in another way than one of an object's method.
        self._imports = [
            node
            for node in tree.body
            if isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and node.module != "__future__")
        ]
        self._wrapper: ast.FunctionDef | None = None
        if self.code.co_freevars:
            wrapper = ast.parse(f"def {WRAPPER}({', '.join(self.code.co_freevars)}): pass").body[0]
            assert isinstance(wrapper, ast.FunctionDef)
            self._wrapper = wrapper
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.Lambda)) and _may_be(node, self.code):
                self.node = node
                compiled = self._compile(keeps_free_variables=False)
                if compiled is not None and _is_same(compiled, self.code):
                    return
        raise SourceUnknown

    def compiled(self) -> CodeType | None:
        """Code of the definition as it is now; None if it is no Python or cannot replace the present code."""
        code = self._compile(keeps_free_variables=True)
        return code if code is not None and code.co_freevars == self.code.co_freevars else None

    def _compile(self, *, keeps_free_variables: bool) -> CodeType | None:
        definition: ast.stmt = self._definition(keeps_free_variables)
        if self._wrapper is not None:
            self._wrapper.body = [definition]
            definition = self._wrapper
        flags = self.code.co_flags & __future__.annotations.compiler_flag
        module = ast.Module([*self._imports, definition], [])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # "'int' object is not subscriptable; perhaps ..."
                whole = compile(module, self.code.co_filename, "exec", flags, dont_inherit=True)
        except (SyntaxError, ValueError, TypeError):  # an edit that is no Python, such as two names as one argument
            return None
        return next(_inner_codes(whole, self.code.co_name), None)

    def _definition(self, keeps_free_variables: bool) -> ast.stmt:
        """The definition as a statement. An edit may remove the last use of a free variable, so all are read."""
        free = self.code.co_freevars if keeps_free_variables else ()
        names = ast.Tuple([ast.Name(name, ast.Load()) for name in free], ast.Load())
        if isinstance(self.node, ast.Lambda):
            body = ast.IfExp(ast.Constant(True), self.node.body, names) if free else self.node.body
            function = ast.Expr(ast.Lambda(self.node.args, body))
            return ast.fix_missing_locations(ast.copy_location(function, self.node))
        definition = copy.copy(self.node)
        definition.decorator_list = []
        if free:
            unused = ast.copy_location(ast.If(ast.Constant(False), [ast.Expr(names)], []), self.node)
            definition.body = [*self.node.body, ast.fix_missing_locations(unused)]
        return definition


@contextmanager
def exchanged(codes: Mapping[EditableFunction, CodeType]) -> Iterator[None]:
    """Let every function object with the present code of a function run the code given for it."""
    try:
        for editable, code in codes.items():
            for function in editable.called.functions:
                function.__code__ = code
        yield
    finally:
        for editable in codes:
            for function in editable.called.functions:
                function.__code__ = editable.code


def _inner_codes(code: CodeType, name: str) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            if constant.co_name == name:
                yield constant
            if constant.co_name == WRAPPER:
                yield from _inner_codes(constant, name)


def _parse(file: str) -> ast.Module:
    lines = linecache.getlines(file)
    if file not in _trees or _trees[file][0] != lines:
        try:
            _trees[file] = lines, ast.parse("".join(lines))
        except SyntaxError:
            raise SourceUnknown from None
    return _trees[file][1]


def _may_be(node: FunctionNode, code: CodeType) -> bool:
    if isinstance(node, ast.Lambda):
        return code.co_name == "<lambda>" and node.lineno == code.co_firstlineno
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return node.name == code.co_name and first == code.co_firstlineno


def _is_same(a: CodeType, b: CodeType) -> bool:
    """True if two codes do the same; line numbers and the names of outer functions do not matter."""
    inner = [[c for c in code.co_consts if isinstance(c, CodeType)] for code in (a, b)]
    plain = [[repr(c) for c in code.co_consts if not isinstance(c, CodeType)] for code in (a, b)]
    names = [(code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars) for code in (a, b)]
    return (
        a.co_code == b.co_code
        and names[0] == names[1]
        and plain[0] == plain[1]
        and len(inner[0]) == len(inner[1])
        and all(_is_same(x, y) for x, y in zip(*inner, strict=True))
    )
