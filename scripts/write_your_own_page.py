"""Writes docs/write-your-own.md: runs the blocks of Python in its template, and puts in what they print.

python scripts/write_your_own_page.py
"""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import torch

DOCS = Path(__file__).parents[1] / "docs"
TEMPLATE, PAGE = DOCS / "write-your-own.template.md", DOCS / "write-your-own.md"
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n\{\{ prints \}\}\n)?", re.MULTILINE | re.DOTALL)
HEAD = "<!-- made by scripts/write_your_own_page.py from write-your-own.template.md: edit that -->\n"


def filled(template: str) -> str:
    """The page: after each block that asks for it, what that block printed. All blocks share their names."""
    names: dict[str, object] = {"__name__": "page"}
    torch.manual_seed(0)

    def run(match: re.Match[str]) -> str:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(match[1], str(TEMPLATE), "exec"), names)
        block = f"```python\n{match[1]}```\n"
        if "{{ prints }}" not in match[0]:
            return block
        return f"{block}\nprints\n\n```\n{printed.getvalue().rstrip()}\n```\n"

    return HEAD + BLOCK.sub(run, template.removeprefix("<!-- template -->\n"))


if __name__ == "__main__":
    PAGE.write_text(filled(TEMPLATE.read_text()))
    print(f"{PAGE.relative_to(DOCS.parent)} is written")
