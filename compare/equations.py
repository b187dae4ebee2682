"""The report's section on equations: docs/equations.md, with the code, the tests and an example of each equation."""

from __future__ import annotations

import re
from pathlib import Path

from compare.sections import MarkdownPage, Section

PAGE = Path(__file__).parents[1] / "docs" / "equations.md"
SOURCE = "docs/equations.md"


def section(page: Path = PAGE) -> Section:
    """Section with the repository's page; without a repository, one sentence says that the page is missing."""
    title = "The equations"
    if not page.exists():
        message = (
            f"{SOURCE} is part of the repository and is not installed with the package, so it is not shown here."
        )
        return Section("equations", title, [message], [], [], {"page": None})
    markdown = re.sub(r"\A(<!--[^\n]*-->\s*)?# [^\n]*\n", "", page.read_text(encoding="utf-8"))
    equations = [int(n) for n in re.findall(r"^### Equation \((\d+)\)$", markdown, re.MULTILINE)]
    text = (
        f"{len(equations)} equations, each with the code that computes it, the tests that check the code, "
        "and a numerical example. The errors on this page were measured when it was written, not in this run."
    )
    parts = [MarkdownPage("The equations, one by one", markdown, f"{SOURCE} in the repository")]
    return Section("equations", title, [text], parts, [], {"page": SOURCE, "equations": equations})
