"""Lines of code that compute an equation, read from the source itself, so that a page cannot quote stale code."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class CodeLine:
    """One statement of the package.

    Attributes:
        file: path from the folder that contains the package.
        line: number of its first line, from 1.
        function: qualified name of the function that it is in.
        text: the statement with its comment, without indentation.
    """

    file: str
    line: int
    function: str
    text: str


def cited_line(function: Callable[..., Any], citation: str) -> CodeLine:
    """Return the statement of ``function`` on whose last line is ``citation``, such as "eq. (20), ∂D/∂x".

    Raises:
        LookupError: no line of the function, or more than one, has this citation.
    """
    function = inspect.unwrap(function)
    lines, first = inspect.getsourcelines(function)
    source = dedent("".join(lines))
    rows = [n for n, line in enumerate(source.splitlines(), 1) if citation in line]
    if len(rows) != 1:
        raise LookupError(f"{function.__qualname__}: expected one line with {citation!r}, got {len(rows)}")
    statements = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.stmt)]
    innermost = max(
        (node for node in statements if node.lineno <= rows[0] <= (node.end_lineno or 0)),
        key=lambda node: node.lineno,
    )
    text = dedent("\n".join(source.splitlines()[innermost.lineno - 1 : rows[0]]))
    file = Path(inspect.getfile(function)).relative_to(ROOT).as_posix()
    return CodeLine(file, first + innermost.lineno - 1, function.__qualname__, text)
