"""Syntax tree of a function that runs, and a function made from a changed tree.

The new function shares globals, closure, defaults and line numbers with the old one. A source that was changed after
its import is refused: the tree must compile to the bytecode that runs.
"""

from __future__ import annotations
import __future__

import ast
import functools
import linecache
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import CellType, CodeType, FunctionType
from typing import Any

FUTURE_FLAGS = functools.reduce(
    int.__or__, (getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)
)
FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


class SourceUnavailable(Exception):
    """There is no source of a function, or it is not what runs."""


@dataclass(frozen=True)
class Definition:
    """A function's syntax tree.

    Attributes:
        node: the tree.
        class_name: name of the class around it, or None. Python makes private names (``__name``) from it.
    """

    node: FunctionNode
    class_name: str | None


def find_definition(function: FunctionType) -> Definition:
    """Find the syntax tree of ``function``.

    Raises:
        SourceUnavailable: no source, or a source with another bytecode than the function's.
    """
    code = function.__code__
    linecache.checkcache(code.co_filename)
    source = "".join(linecache.getlines(code.co_filename, function.__globals__))
    if not source:
        raise SourceUnavailable(
            f"the source of {function.__qualname__} is not available, as in python -c and exec; define it in a file"
        )
    key = code.co_name, code.co_firstlineno
    for definition in _definitions(source).get(key, ()):
        alone = _compile(function, definition, ())
        # Python compiles a call of module.function in another way if the same source imports the module.
        if _is_same_code(alone, code, compare_bytecode=code not in _codes(source).get(key, ())):
            return definition
    raise SourceUnavailable(
        f"the source of {function.__qualname__}, {code.co_filename}, line {code.co_firstlineno}, is not what runs: "
        "it was changed after the import, or by the import"
    )


def make_function(function: FunctionType, definition: Definition, names: Mapping[str, Any]) -> FunctionType:
    """A function like ``function`` with the body of ``definition``, which may also use ``names``."""
    code = _compile(function, definition, names)
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    cells |= {name: CellType(value) for name, value in names.items()}
    return copy_function(function, code, tuple(cells[name] for name in code.co_freevars))


def copy_function(function: FunctionType, code: CodeType, closure: tuple[CellType, ...]) -> FunctionType:
    """A function with the name, globals, defaults and attributes of ``function``."""
    new = FunctionType(code, function.__globals__, function.__name__, function.__defaults__, closure)
    new.__kwdefaults__ = function.__kwdefaults__
    functools.update_wrapper(new, function)
    del vars(new)["__wrapped__"]
    return new


@functools.lru_cache(maxsize=64)
def _definitions(source: str) -> dict[tuple[str, int], list[Definition]]:
    """Definitions of all functions in ``source`` by name and first line."""
    definitions: dict[tuple[str, int], list[Definition]] = defaultdict(list)

    def visit(node: ast.AST, class_name: str | None) -> None:
        if isinstance(node, ast.Lambda):
            definitions["<lambda>", node.lineno].append(Definition(node, class_name))
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            line = min(part.lineno for part in (node, *node.decorator_list))
            definitions[node.name, line].append(Definition(node, class_name))
        for child in ast.iter_child_nodes(node):
            visit(child, node.name if isinstance(node, ast.ClassDef) else class_name)

    try:
        visit(ast.parse(source), None)
    except SyntaxError as error:  # a notebook's cell may have commands that are not Python
        raise SourceUnavailable(f"its source is not Python: {error}") from None
    return definitions


@functools.lru_cache(maxsize=64)
def _codes(source: str) -> dict[tuple[str, int], list[CodeType]]:
    """Codes of all functions in ``source``, compiled as a whole, by name and first line."""
    codes: dict[tuple[str, int], list[CodeType]] = defaultdict(list)
    for code in nested_codes(compile(source, "", "exec", dont_inherit=True)):
        codes[code.co_name, code.co_firstlineno].append(code)
    return codes


def nested_codes(code: CodeType) -> Iterator[CodeType]:
    """``code`` and the codes of all functions in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from nested_codes(constant)


def _compile(function: FunctionType, definition: Definition, names: Iterable[str]) -> CodeType:
    """Compile the definition inside of a function that has the variables of its closure."""
    original, node = function.__code__, definition.node
    name = original.co_name if isinstance(node, ast.Lambda) else "_manualgrad_function"
    statement: ast.stmt
    if isinstance(node, ast.Lambda):
        statement = ast.Expr(node)
    else:
        fields = {name: getattr(node, name) for name in node._fields}
        statement = type(node)(**fields | {"name": name, "decorator_list": [], "returns": None})
    variables = [variable for variable in (*original.co_freevars, *names) if variable != "__class__"]
    # Underscores before the class's name have no effect on private names, and no function refers to that name.
    class_name = f"___{definition.class_name}"
    module = ast.parse(f"def factory({', '.join(variables)}):\n class {class_name}: pass")
    factory: Any = module.body[0]
    (factory.body[0] if definition.class_name else factory).body = [ast.copy_location(statement, node)]
    code: CodeType = compile(
        ast.fix_missing_locations(module), original.co_filename, "exec", original.co_flags & FUTURE_FLAGS,
        dont_inherit=True,
    )  # fmt: skip
    for part_name in ("factory", *([class_name] if definition.class_name else []), name):
        parts = [part for part in code.co_consts if isinstance(part, CodeType) and part.co_name == part_name]
        code = parts[-1]  # default values, which come first, may be functions of the same name
    shown = {key: getattr(original, key) for key in ("co_name", "co_qualname") if hasattr(original, key)}
    return code.replace(**shown)


def _is_same_code(a: CodeType, b: CodeType, compare_bytecode: bool) -> bool:
    """Compare names and constants, and the bytecode if wanted, also of the functions inside."""

    def content(code: CodeType) -> tuple[Any, ...]:
        return (code.co_names, code.co_varnames, code.co_cellvars, code.co_freevars, len(code.co_consts),
                compare_bytecode and code.co_code)  # fmt: skip

    def is_same(x: object, y: object) -> bool:
        if isinstance(x, CodeType) and isinstance(y, CodeType):
            return _is_same_code(x, y, compare_bytecode)
        return type(x) is type(y) and (x == y or repr(x) == repr(y))

    return content(a) == content(b) and all(map(is_same, a.co_consts, b.co_consts))
