"""Promise: the API reference has a page for every public module, and each page is in its table of contents."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "api").glob("*.rst")}


def documented(directive: str) -> set[str]:
    """Arguments of an autodoc directive on all pages."""
    return {
        name for text in PAGES.values() for name in re.findall(rf"^\.\. {directive}:: (\S+)$", text, re.MULTILINE)
    }


def test_every_public_module_is_on_a_page():
    public = ("functional", "nn", "models", "backprop", "kernels", "interop", "data")
    assert {"compare", *(f"manualgrad.{name}" for name in public)} <= documented("automodule")
    names = ast.parse((ROOT / "manualgrad" / "functional.py").read_text(encoding="utf-8")).body
    operations = {node.module for node in names if isinstance(node, ast.ImportFrom)} - {"manualgrad.ops.loss"}
    assert operations | {"manualgrad.ops.softmax_cross_entropy"} <= documented("automodule")


def test_what_the_pages_name_exists():
    for module in documented("automodule"):
        assert importlib.import_module(module).__doc__
    for name in documented("autoclass"):
        module, _, attribute = name.rpartition(".")
        assert getattr(importlib.import_module(module), attribute).__doc__


def test_the_table_of_contents_has_every_page():
    listed = re.findall(r"^   (\w+)$", PAGES["index"], re.MULTILINE)
    assert sorted(listed) == sorted(set(PAGES) - {"index"})
