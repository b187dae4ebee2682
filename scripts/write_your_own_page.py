"""Write docs/write-your-own.md: run the Python blocks of its template, and insert their output.

python scripts/write_your_own_page.py
"""

from __future__ import annotations

import contextlib
import io
import linecache
import re
from pathlib import Path

import torch

DOCS = Path(__file__).parents[1] / "docs"
TEMPLATE, PAGE = DOCS / "write-your-own.template.md", DOCS / "write-your-own.md"
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n\{\{ prints \}\}\n)?", re.MULTILINE | re.DOTALL)
SOURCE_NAME = "my_file.py"
HEADER = "<!-- made by scripts/write_your_own_page.py from write-your-own.template.md: edit that -->\n"


def fill_template(template: str) -> str:
    """Return the page: ``{{ prints }}`` after a block becomes the block's output.

    All blocks share one namespace, and are one source file for functions that look up their source.
    """
    namespace: dict[str, object] = {"__name__": "page"}
    source = ""
    torch.manual_seed(0)

    def run(match: re.Match[str]) -> str:
        nonlocal source
        output, first_line = io.StringIO(), source.count("\n")
        source += match[1]
        linecache.cache[SOURCE_NAME] = len(source), None, source.splitlines(keepends=True), SOURCE_NAME
        with contextlib.redirect_stdout(output):
            exec(compile("\n" * first_line + match[1], SOURCE_NAME, "exec"), namespace)
        block = f"```python\n{match[1]}```\n"
        if "{{ prints }}" not in match[0]:
            return block
        return f"{block}\nprints\n\n```\n{output.getvalue().rstrip()}\n```\n"

    return HEADER + BLOCK.sub(run, template.removeprefix("<!-- template -->\n"))


if __name__ == "__main__":
    PAGE.write_text(fill_template(TEMPLATE.read_text()))
    print(f"{PAGE.relative_to(DOCS.parent)} is written")
