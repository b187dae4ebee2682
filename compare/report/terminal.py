"""A section as text for a terminal."""

from __future__ import annotations

import shutil
import textwrap
from dataclasses import replace

from tabulate import MIN_PADDING, tabulate

from compare.report.cells import FAILED, Cells, cells
from compare.report.headline import differences
from compare.sections import Document, Picture, Section, Table

GAP = 2  # between two columns, as tabulate's "simple" has it
WIDEST_CELL = 36
MOST_ROWS = 30  # those that failed come first


def as_text(section: Section, width: int | None = None) -> str:
    """Title, text, tables and failures; other parts are named. ``width``: the terminal's, 120 at most."""
    width = width or min(120, shutil.get_terminal_size((110, 24)).columns)
    blocks = [f"{section.title}\n{'=' * len(section.title)}"]
    blocks += [_filled(paragraph, width) for paragraph in section.text]
    blocks += [_table(part, width) for part in _of(section, Table) if not part.detail]
    blocks += [f"{part.title}: {part.source}, and in report.html." for part in _of(section, Document)]
    if only := [part.title for part in section.parts if isinstance(part, Picture) or _is_detail(part)]:
        blocks.append(_filled(f"In the report only: {'; '.join(only)}.", width))
    if section.failures or section.compared:
        blocks.append("\n".join([f"{differences(len(section.failures))}.", *_failures(section, width)]))
    return "\n\n".join(blocks) + "\n"


def _of(section: Section, kind: type) -> list:
    return [part for part in section.parts if isinstance(part, kind)]


def _is_detail(part: object) -> bool:
    return isinstance(part, Table) and part.detail


def _filled(text: str, width: int, indent: str = "") -> str:
    return textwrap.fill(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _failures(section: Section, width: int) -> list[str]:
    return [_filled(f"{FAILED} {sentence}", width, "  ") for sentence in section.failures]


def _table(table: Table, width: int) -> str:
    """Columns that do not fit side by side go below, each time with the first column before them."""
    content = cells(table)
    content = replace(
        content, rows=[["\n".join(textwrap.wrap(cell, WIDEST_CELL)) for cell in row] for row in content.rows]
    )
    shown = sorted(sorted(range(len(content.rows)), key=lambda n: (n not in table.failed, n))[:MOST_ROWS])
    content = replace(content, rows=[content.rows[n] for n in shown])
    lines = [table.title, "\n\n".join(_columns(content, chosen) for chosen in _blocks(content, width))]
    if len(shown) < len(table.rows):
        lines.append(f"{len(table.rows) - len(shown):,} of {len(table.rows):,} rows are in the report only.")
    if table.note:
        lines.append(_filled(table.note, width))
    return "\n".join(lines)


def _blocks(content: Cells, width: int) -> list[list[int]]:
    """The columns of each block, by their numbers: as many as fit, and two at least."""
    widths = [_width(content, n) + GAP for n in range(len(content.columns))]
    blocks: list[list[int]] = [[0]]
    for n in range(1, len(widths)):
        if len(blocks[-1]) > 1 and sum(widths[m] for m in blocks[-1]) + widths[n] > width + GAP:
            blocks.append([0])
        blocks[-1].append(n)
    return blocks


def _width(content: Cells, n: int) -> int:
    """Of a column's cells, and of the longest word of its name, which goes over several lines and gets a margin."""
    words = max(map(len, content.columns[n].split()), default=0)
    return max(words + MIN_PADDING, *(len(line) for row in content.rows for line in row[n].split("\n")), 0)


def _columns(content: Cells, chosen: list[int]) -> str:
    return tabulate(
        [[row[n] for n in chosen] for row in content.rows],
        headers=["\n".join(textwrap.wrap(content.columns[n], _width(content, n) - MIN_PADDING)) for n in chosen],
        tablefmt="simple",
        disable_numparse=True,
        colalign=["right" if content.right[n] else "left" for n in chosen] if content.rows else None,
    )
