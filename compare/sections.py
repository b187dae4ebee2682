"""Sections of the report. Every comparison returns one: text, tables and pictures, and what failed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
    """

    name: str
    title: str
    text: Sequence[str]
    parts: Sequence[Table | Picture | MarkdownPage]
    failures: Sequence[str]
    data: Any
    compared: int = 0
