"""What every comparison hands to the report: a section of text, tables and pictures, and what it found wrong."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

Cell = str | int | float | bool | None


@dataclass(frozen=True)
class Table:
    """Rows of cells under ``columns``. The report formats numbers, True and False; a string stands as it is.

    ``failed``: the indices of rows that a failure is about; the report marks them. ``detail``: too much for the
    terminal, and folded in the page.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    failed: Collection[int] = ()
    detail: bool = False


@dataclass(frozen=True)
class Picture:
    """A figure, drawn when the report asks: under light colours, and again under dark ones (matplotlib's rcParams).

    ``draw`` leaves text and background to rcParams, and picks data colours that are legible on both.
    ``alt`` says in words what is to be seen.
    """

    title: str
    draw: Callable[[], Figure]
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Document:
    """A page of Markdown, with ``$$formulas$$`` on lines of their own. The HTML report holds it, the others name it.

    ``source`` names where the page is to be found outside the report.
    """

    title: str
    markdown: str
    source: str


@dataclass(frozen=True)
class Section:
    """One part of a report.

    ``failures``: one sentence for each thing that differs and that nothing explains; any makes the exit code 1.
    ``data``: the same as plain dicts, lists and numbers, for report.json.
    ``compared``: how many comparisons were made, each of which could have failed; the report's summary counts them.
    """

    name: str
    title: str
    text: Sequence[str]
    parts: Sequence[Table | Picture | Document]
    failures: Sequence[str]
    data: Any
    compared: int = 0
