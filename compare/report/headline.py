"""The headline of a report: one sentence with its result."""

from __future__ import annotations

from collections.abc import Sequence

from compare.sections import Section


def headline(sections: Sequence[Section]) -> str:
    """Sentence with the numbers of cases that were not compared, of unexplained differences, and of comparisons.

    Cases that were not compared come first: what follows is about the others alone.
    """
    compared = sum(section.compared for section in sections)
    differences = sum(len(section.failures) for section in sections)
    errors = sum(len(section.errors) for section in sections)
    plural = "" if compared == 1 else "s"
    if not errors:
        in_comparisons = f" in {compared:,} comparison{plural}" if compared else ""
        return f"{count_differences(differences)}{in_comparisons}."
    if not compared and not differences:
        return f"{count_errors(errors)}, and nothing else was."
    number = f"{compared:,} comparisons" if compared != 1 else "comparison"
    in_comparisons = f" in the other {number}" if compared else ""
    return f"{count_errors(errors)}; {count_differences(differences).lower()}{in_comparisons}."


def summary(section: Section) -> str:
    """Words for the result of one section."""
    if not section.errors:
        return count_differences(len(section.failures))
    if not section.compared and not section.failures:
        return count_errors(len(section.errors))
    return f"{count_errors(len(section.errors))}; {count_differences(len(section.failures)).lower()} in the others"


def count_errors(n: int) -> str:
    """Words for ``n`` cases that ended in an error: "1 case could not be compared", and so on."""
    return f"{n:,} case{'' if n == 1 else 's'} could not be compared"


def count_differences(n: int) -> str:
    """Words for ``n`` differences: "No unexplained difference", "1 unexplained difference", and so on."""
    return f"{f'{n:,}' if n else 'No'} unexplained difference{'' if n <= 1 else 's'}"
