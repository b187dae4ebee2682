"""Corrections that a search results in, or a sentence on what it did not try."""

from __future__ import annotations

from dataclasses import dataclass

from compare.gradients.source_changes.correction import Correction

AT_LIMIT = "Changes of the source were tried up to the limit of the search; none of them was enough."


@dataclass(frozen=True)
class SearchResult:
    """Result of a search.

    Attributes:
        note: without a correction, a sentence on what was not tried, and why; "" if everything was.
    """

    corrections: list[Correction]
    note: str = ""


def not_tried(reason: str) -> str:
    """Sentence that says why there was no search."""
    return f"No change of the source was tried, since {reason}."
