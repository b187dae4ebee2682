"""The headline of a report: one sentence with its result."""

from __future__ import annotations

from collections.abc import Sequence

from compare.sections import Section


def headline(sections: Sequence[Section]) -> str:
    """Sentences with the numbers of unexplained differences, of comparisons, and of cases that were not compared."""
    compared = sum(section.compared for section in sections)
    in_comparisons = f" in {compared:,} comparison{'' if compared == 1 else 's'}" if compared else ""
    differences = f"{count_differences(sum(len(section.failures) for section in sections))}{in_comparisons}."
    errors = sum(len(section.errors) for section in sections)
    return f"{differences} {count_errors(errors)}." if errors else differences


def summary(section: Section) -> str:
    """Words for the result of one section."""
    differences = count_differences(len(section.failures))
    return f"{differences}; {count_errors(len(section.errors))}" if section.errors else differences


def count_errors(n: int) -> str:
    """Words for ``n`` cases that ended in an error: "1 case could not be compared", and so on."""
    return f"{n:,} case{'' if n == 1 else 's'} could not be compared"


def count_differences(n: int) -> str:
    """Words for ``n`` differences: "No unexplained difference", "1 unexplained difference", and so on."""
    return f"{f'{n:,}' if n else 'No'} unexplained difference{'' if n <= 1 else 's'}"
