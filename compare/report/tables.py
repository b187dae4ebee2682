"""Tables as text: cells and alignment are the same in every format of the report."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real

from compare.sections import Cell, Table

FAILED = "✗"

# Text that is aligned like a number: digits, maybe with thousands separators, a spread, or a unit.
NUMBER = re.compile(r"[<>≤≥~]? ?[+−-]?\d[\d,.]*(e[+-]?\d+)?( ± [\d.e+-]+)? ?[^\s\d]{0,4}")
EMPTY_CELL = "–"


@dataclass(frozen=True)
class FormattedTable:
    """Column names, rows of text, and a bool for each column that is True if the column is aligned right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    right_aligned: Sequence[bool]


def format_table(table: Table) -> FormattedTable:
    """Format all cells as text; a failed row begins with ✗.

    Raises:
        ValueError: a row has more or fewer cells than there are columns.
    """
    for row in table.rows:
        if len(row) != len(table.columns):
            raise ValueError(
                f"table {table.title!r}: expected {len(table.columns)} cells in a row, got {len(row)}: {row!r}"
            )
    columns = [[row[n] for row in table.rows] for n in range(len(table.columns))]
    right_aligned = [all(map(_is_number, column)) and any(cell is not None for cell in column) for column in columns]
    rows = [[format_cell(cell) for cell in row] for row in table.rows]
    for n in table.failed:
        rows[n][0] = f"{FAILED} {rows[n][0]}"
    return FormattedTable([str(column) for column in table.columns], rows, right_aligned)


def format_cell(cell: Cell) -> str:
    """Format one cell: floats with four significant digits, integers below 10¹² in full, bools as yes and no."""
    if cell is None:
        return EMPTY_CELL
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, Integral):
        return f"{cell:,}" if abs(cell) < 10**12 else f"{float(cell):.2e}"
    if isinstance(cell, Real):
        return _format_float(float(cell))
    return str(cell)


def _format_float(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e6:
        return f"{value:.2e}"
    exponent = int(f"{value:.3e}".partition("e")[2])  # of the rounded number: 9.99996 is 10.00
    return f"{value:,.{max(0, 3 - exponent)}f}"


def _is_number(cell: Cell) -> bool:
    if isinstance(cell, str):
        return cell in ("", EMPTY_CELL) or NUMBER.fullmatch(cell) is not None
    return not isinstance(cell, bool)
