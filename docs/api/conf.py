"""Sphinx configuration of the API reference, which is made from the docstrings."""

from __future__ import annotations

import re
from typing import Any

import manualgrad

project = "manualgrad"
version = release = manualgrad.__version__
copyright = "the authors of manualgrad, MIT licence"
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon"]
highlight_language = "none"  # most blocks are formulas
html_theme = "alabaster"
html_theme_options = {
    "description": manualgrad.__doc__.partition(": ")[2],
    "page_width": "1200px",
    "body_max_width": "none",
}
exclude_patterns = ["build"]

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_inherit_docstrings = False  # nn.Module's are PyTorch's
napoleon_custom_sections = [("Shapes", "params_style"), ("Returns", "returns_style")]

nitpicky = True  # a reference to a name that is on no page is an error, except for these
nitpick_ignore_regex = [("py:.*", r"(torch|collections|pathlib|manualgrad\.ops)\..*|optional|(tuple|dict)\[\w+")]

INDENTED = re.compile(r" {4,}\S")


def mark_indented_blocks(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Make a literal block of every indented block after a blank line: formulas and code keep their layout."""
    marked: list[str] = []
    indent = 0  # of the last paragraph that is no literal block
    for line in lines:
        spaces = len(line) - len(line.lstrip())
        if INDENTED.match(line) and spaces >= indent + 4 and marked and not marked[-1]:
            marked += [" " * indent + "::", ""]
            indent = spaces
        elif line:
            indent = spaces
        marked.append(line)
    lines[:] = marked


def setup(app: Any) -> None:
    """Register the hook to run before napoleon, which rewrites the sections of a docstring."""
    app.connect("autodoc-process-docstring", mark_indented_blocks, priority=400)
