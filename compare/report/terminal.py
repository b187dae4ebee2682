"""A section as text for a terminal."""

from __future__ import annotations

import shutil
import textwrap
from dataclasses import replace

from compare.report.headline import summary
from compare.report.tables import FAILED, FormattedTable, format_table
from compare.sections import MarkdownPage, Picture, Section, Table

COLUMN_GAP = 2  # spaces between two columns in tabulate's format "simple"
MIN_PADDING = 2  # tabulate.MIN_PADDING: spaces that it adds to the name of a column
MAX_CELL_WIDTH = 36
MAX_ROWS = 30  # failed rows are shown before others


def as_text(section: Section, width: int | None = None) -> str:
    """Return title, text, tables and failures; large tables, pictures and Markdown pages are only named.

    Args:
        width: characters in a line; by default the terminal's width, and at most 120.
    """
    width = width or min(120, shutil.get_terminal_size((110, 24)).columns)
    tables = [part for part in section.parts if isinstance(part, Table) and not part.detail]
    pages = [part for part in section.parts if isinstance(part, MarkdownPage)]
    blocks = [f"{section.title}\n{'=' * len(section.title)}"]
    blocks += [_wrap(paragraph, width) for paragraph in section.text]
    blocks += [_table(table, width) for table in tables]
    blocks += [f"{page.title}: {page.source}, and in report.html." for page in pages]
    if only := [part.title for part in section.parts if isinstance(part, Picture) or _is_large_table(part)]:
        blocks.append(_wrap(f"In the report only: {'; '.join(only)}.", width))
    failures = [*section.errors, *section.failures]
    if failures or section.compared:
        sentences = [_wrap(f"{FAILED} {sentence}", width, "  ") for sentence in failures]
        blocks.append("\n".join([f"{summary(section)}.", *sentences]))
    return "\n\n".join(blocks) + "\n"


def _is_large_table(part: object) -> bool:
    return isinstance(part, Table) and part.detail


def _wrap(text: str, width: int, indent: str = "") -> str:
    return textwrap.fill(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _table(table: Table, width: int) -> str:
    """Return a table as text. Columns beyond the width follow below, after a copy of the first column."""
    content = format_table(table)
    content = replace(
        content, rows=[["\n".join(textwrap.wrap(cell, MAX_CELL_WIDTH)) for cell in row] for row in content.rows]
    )
    failed_first = sorted(range(len(content.rows)), key=lambda n: (n not in table.failed, n))
    shown = sorted(failed_first[:MAX_ROWS])
    content = replace(content, rows=[content.rows[n] for n in shown])
    groups = _column_groups(content, width)
    lines = [table.title, "\n\n".join(_format_columns(content, columns) for columns in groups)]
    if len(shown) < len(table.rows):
        lines.append(f"{len(table.rows) - len(shown):,} of {len(table.rows):,} rows are in the report only.")
    if table.note:
        lines.append(_wrap(table.note, width))
    return "\n".join(lines)


def _column_groups(table: FormattedTable, width: int) -> list[list[int]]:
    """Divide the columns into groups that fit into the width, of at least two columns; each begins with the first."""
    widths = [_column_width(table, n) + COLUMN_GAP for n in range(len(table.columns))]
    groups: list[list[int]] = [[0]]
    for n in range(1, len(widths)):
        if len(groups[-1]) > 1 and sum(widths[m] for m in groups[-1]) + widths[n] > width + COLUMN_GAP:
            groups.append([0])
        groups[-1].append(n)
    return groups


def _column_width(table: FormattedTable, n: int) -> int:
    """Width of a column: that of its cells, or of the longest word of its name, which is wrapped and padded."""
    longest_word = max(map(len, table.columns[n].split()), default=0)
    return max(longest_word + MIN_PADDING, *(len(line) for row in table.rows for line in row[n].split("\n")), 0)


def _format_columns(table: FormattedTable, columns: list[int]) -> str:
    from tabulate import tabulate  # of the extra "report"

    return tabulate(
        [[row[n] for n in columns] for row in table.rows],
        headers=["\n".join(textwrap.wrap(table.columns[n], _column_width(table, n) - MIN_PADDING)) for n in columns],
        tablefmt="simple",
        disable_numparse=True,
        colalign=["right" if table.right_aligned[n] else "left" for n in columns] if table.rows else None,
    )
