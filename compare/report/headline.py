"""The headline of a report: one sentence with its result."""

from __future__ import annotations

from collections.abc import Sequence

from compare.sections import Section


def headline(sections: Sequence[Section]) -> str:
    """Sentence with the number of unexplained differences and of comparisons."""
    compared = sum(section.compared for section in sections)
    in_comparisons = f" in {compared:,} comparison{'' if compared == 1 else 's'}" if compared else ""
    return f"{count_differences(sum(len(section.failures) for section in sections))}{in_comparisons}."


def count_differences(n: int) -> str:
    """Words for ``n`` differences: "No unexplained difference", "1 unexplained difference", and so on."""
    return f"{f'{n:,}' if n else 'No'} unexplained difference{'' if n <= 1 else 's'}"
