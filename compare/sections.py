"""Sections of the report. Every comparison returns one: text, tables and pictures, and what failed.

Their text is printable: names and messages of the user's code may have control characters, and these are escaped when
a table, a picture or a section is made.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

from compare.case_errors import CaseFailure
from compare.printable import printable

Cell = str | int | float | bool | None


@dataclass(frozen=True)
class Table:
    """Rows of cells. The report formats numbers, True and False; strings are printed unchanged.

    Attributes:
        failed: indices of the rows that the report marks as failed.
        detail: True for a large table, which the terminal omits and the HTML page folds.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    failed: Collection[int] = ()
    detail: bool = False

    def __post_init__(self) -> None:
        _make_printable(self, "title", "note", "columns")
        object.__setattr__(self, "rows", [tuple(_printable_cell(cell) for cell in row) for row in self.rows])


@dataclass(frozen=True)
class Picture:
    """A figure that the report draws twice: with the colours of a light page, and with those of a dark one.

    Attributes:
        draw: makes the figure. It takes the colours of text and background from matplotlib's rcParams, and its data
            colours are legible on both backgrounds.
        alt: description of the picture for readers who cannot see it.
    """

    title: str
    draw: Callable[[], Figure]
    alt: str
    caption: str = ""

    def __post_init__(self) -> None:
        _make_printable(self, "title", "alt", "caption")


@dataclass(frozen=True)
class MarkdownPage:
    """A page of Markdown, with ``$$formulas$$`` on lines of their own.

    The HTML report contains the page; the terminal and report.md only mention it.

    Attributes:
        source: the page's location outside the report.
    """

    title: str
    markdown: str
    source: str


@dataclass(frozen=True)
class Section:
    """One section of a report.

    Attributes:
        failures: one sentence for each unexplained difference; if there are any, the exit code is 1.
        data: the results as dicts, lists and numbers, for report.json.
        compared: number of comparisons, each of which could have failed.
        errors: one sentence for each case that could not be compared; if there are any, the exit code is 2.
    """

    name: str
    title: str
    text: Sequence[str]
    parts: Sequence[Table | Picture | MarkdownPage]
    failures: Sequence[str]
    data: Any
    compared: int = 0
    errors: Sequence[str] = ()

    def __post_init__(self) -> None:
        _make_printable(self, "name", "title", "text", "failures", "errors")


def failure_tables(failures: Sequence[CaseFailure]) -> list[Table | Picture]:
    """Table of the cases that could not be compared; no table if there is none."""
    if not failures:
        return []
    rows = [(failure.case, failure.message.removeprefix(f"{failure.case}: ")) for failure in failures]
    return [Table("Cases that could not be compared", ("case", "error"), rows, failed=range(len(rows)))]


def _make_printable(instance: object, *names: str) -> None:
    """Escape what is not printable in attributes of a frozen dataclass, each a text or a sequence of texts."""
    for name in names:
        value = getattr(instance, name)
        printed = printable(value) if isinstance(value, str) else [printable(str(item)) for item in value]
        object.__setattr__(instance, name, printed)


def _printable_cell(cell: Cell) -> Cell:
    return printable(cell) if isinstance(cell, str) else cell
