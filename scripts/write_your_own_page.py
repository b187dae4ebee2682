"""Write docs/write-your-own.md: run the Python blocks of its template, and insert their output.

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
HEADER = "<!-- made by scripts/write_your_own_page.py from write-your-own.template.md: edit that -->\n"


def fill_template(template: str) -> str:
    """Return the page: ``{{ prints }}`` after a block becomes the block's output. All blocks share one namespace."""
    namespace: dict[str, object] = {"__name__": "page"}
    torch.manual_seed(0)

    def run(match: re.Match[str]) -> str:
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(compile(match[1], str(TEMPLATE), "exec"), namespace)
        block = f"```python\n{match[1]}```\n"
        if "{{ prints }}" not in match[0]:
            return block
        return f"{block}\nprints\n\n```\n{output.getvalue().rstrip()}\n```\n"

    return HEADER + BLOCK.sub(run, template.removeprefix("<!-- template -->\n"))


if __name__ == "__main__":
    PAGE.write_text(fill_template(TEMPLATE.read_text()))
    print(f"{PAGE.relative_to(DOCS.parent)} is written")
