"""The one sentence that a report comes to."""

from __future__ import annotations

from collections.abc import Sequence

from compare.sections import Section


def headline(sections: Sequence[Section]) -> str:
    """How many comparisons there were, and how many differences nothing explains."""
    compared = sum(section.compared for section in sections)
    return f"{differences(sum(len(section.failures) for section in sections))}{_out_of(compared)}."


def differences(n: int) -> str:
    """ "No unexplained difference", "1 unexplained difference", and so on."""
    return f"{f'{n:,}' if n else 'No'} unexplained difference{'' if n <= 1 else 's'}"


def _out_of(compared: int) -> str:
    return f" in {compared:,} comparison{'' if compared == 1 else 's'}" if compared else ""
