"""Blocks of Python in Markdown pages: a block that quotes the source is compared with it, any other block is run.

A block that "It prints:" and another block follow must print exactly the text of that block.
"""

from __future__ import annotations

import ast
import contextlib
import doctest
import io
import re
from functools import cache
from pathlib import Path

from scripts.equations_page import LINK, ROOT, scopes

BLOCK = re.compile(r"^```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
QUOTE = re.compile(rf"(?:{LINK.pattern}(?:,\s| and )?)+:\n\n\Z")  # the end of the text before a block that quotes
PRINTED = re.compile(r"\nIt prints:\n\n```\n(?P<output>.*?)^```$", re.MULTILINE | re.DOTALL)  # the text after a block


@cache  # most pages link to a few files many times
def source_lines(file: str, name: str) -> list[str]:
    """The stripped lines of a class or function. Raises LookupError if the file has none of this name."""
    source = (ROOT / file).read_text(encoding="utf-8")
    for qualified_name, node in scopes(ast.parse(source)):
        if qualified_name == name:
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            return [line.strip() for line in source.splitlines()[first - 1 : node.end_lineno]]
    raise LookupError(f"{file} has no {name}")


def check_quote(code: str, links: str) -> None:
    """Raise AssertionError unless the block's lines are lines of the linked objects, in their order."""
    source = iter([line for name, file in LINK.findall(links) for line in source_lines(file, name)])
    for line in filter(None, map(str.strip, code.splitlines())):
        assert line in source, f"not in the source, or not in this order: {line}"


def run(code: str, names: dict[str, object], page: str) -> None:
    """Run a block. Raise AssertionError if an example (>>>) prints something else than the page."""
    if ">>> " not in code:
        exec(compile(code, page, "exec"), names)
        return
    examples = doctest.DocTestParser().get_examples(code)
    report: list[str] = []
    test = doctest.DocTest(examples, names, page, page, 0, code)
    doctest.DocTestRunner(verbose=False).run(test, out=report.append, clear_globs=False)
    names.update(test.globs)
    assert not report, "".join(report)


def check(text: str, page: str, names: dict[str, object] | None = None) -> dict[str, object]:
    """Check every block of a page, or of a part of it, in order. Return the names that the blocks share."""
    names = {"__name__": "page"} if names is None else names
    for match in BLOCK.finditer(text):
        links = QUOTE.search(text, 0, match.start())
        if links:
            check_quote(match["code"], links[0])
            continue
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            run(match["code"], names, page)
        printed = PRINTED.match(text, match.end() + 1)
        if printed:
            assert output.getvalue() == printed["output"]
    return names


def pages() -> list[Path]:
    """README.md, CONTRIBUTING.md, CHANGELOG.md and docs/*.md without templates."""
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("[!.]*.md"))]
