"""docs/equations.md as a section of the report: each equation with its line of code, its proof and an example."""

from __future__ import annotations

import re
from pathlib import Path

from compare.sections import Document, Section

PAGE = Path(__file__).parents[1] / "docs" / "equations.md"
SOURCE = "docs/equations.md"


def section(page: Path = PAGE) -> Section:
    """The page of the clone; where manualgrad was installed without one, a sentence that says so."""
    title = "The equations"
    if not page.exists():
        absent = f"{SOURCE} belongs to the repository and was not installed with the package; it is not shown here."
        return Section("equations", title, [absent], [], [], {"page": None})
    markdown = re.sub(r"\A(<!--[^\n]*-->\s*)?# [^\n]*\n", "", page.read_text(encoding="utf-8"))
    equations = [int(n) for n in re.findall(r"^### Equation \((\d+)\)$", markdown, re.MULTILINE)]
    text = (
        f"{len(equations)} equations, each with the line of code that computes it, the tests that prove the line, "
        "and numbers to follow by hand. The errors on this page were measured when it was written, not in this run."
    )
    document = Document("The equations, one by one", markdown, f"{SOURCE} in the repository")
    return Section("equations", title, [text], [document], [], {"page": SOURCE, "equations": equations})
