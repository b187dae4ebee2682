"""Text without characters that change how a terminal or a page shows other text."""

from __future__ import annotations

import unicodedata

KEPT = "\n\t\u200c\u200d"  # line breaks and tabs, which are white space; the joiners inside words and emoji


def printable(text: str) -> str:
    r"""Escape control characters, directional overrides and lone surrogates, as in ``\x1b``."""
    return text if text.isprintable() else "".join(map(_escape, text))


def _escape(character: str) -> str:
    if character.isprintable() or character in KEPT or unicodedata.category(character) == "Zs":
        return character
    return character.encode("unicode_escape").decode()
