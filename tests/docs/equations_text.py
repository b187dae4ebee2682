"""Sections and parts of docs/equations.md."""

from __future__ import annotations

import re

from scripts.equations_page import PAGE

TEXT = PAGE.read_text(encoding="utf-8")
NUMBERS = range(1, 24)


def section(title):
    """The text under a heading, up to the next heading."""
    (text,) = re.findall(rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    return text


def part(n, name):
    """One part of an equation's section: Reading, Derivation, Code, Proof or By hand."""
    pattern = rf"^\*\*{name}\.\*\*(.*?)(?=^\*\*[A-Z]|\Z)"
    (text,) = re.findall(pattern, section(f"Equation ({n})"), re.MULTILINE | re.DOTALL)
    return text
