"""A table's cells as words, the same in every format."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real

from compare.sections import Cell, Table

FAILED = "✗"

# A number in words: with thousands separated, a spread, or a unit behind it. It is aligned like a number.
NUMBER = re.compile(r"[<>≤≥~]? ?[+−-]?\d[\d,.]*(e[+-]?\d+)?( ± [\d.e+-]+)? ?[^\s\d]{0,4}")
NOTHING = "–"


@dataclass(frozen=True)
class Cells:
    """Columns, rows of words, and whether each column is aligned right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: Sequence[bool]


def cells(table: Table) -> Cells:
    """The table in words; a row that a failure is about begins with ✗.

    Raises:
        ValueError: a row has more or fewer cells than there are columns.
    """
    for row in table.rows:
        if len(row) != len(table.columns):
            raise ValueError(f"table {table.title!r}: {len(table.columns)} columns, but a row of {len(row)}: {row!r}")
    right = [all(map(_is_number, column)) and any(c is not None for c in column) for column in _columns(table)]
    rows = [[words(cell) for cell in row] for row in table.rows]
    for n in table.failed:
        rows[n][0] = f"{FAILED} {rows[n][0]}"
    return Cells([str(column) for column in table.columns], rows, right)


def words(cell: Cell) -> str:
    """A cell as a person reads it: four significant digits of a float, a count in full (below 10¹²), yes or no."""
    if cell is None:
        return NOTHING
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, Integral):
        return f"{cell:,}" if abs(cell) < 10**12 else f"{float(cell):.2e}"
    if isinstance(cell, Real):
        return _digits(float(cell))
    return str(cell)


def _digits(value: float) -> str:
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
        return cell in ("", NOTHING) or NUMBER.fullmatch(cell) is not None
    return not isinstance(cell, bool)


def _columns(table: Table) -> list[list[Cell]]:
    return [[row[n] for row in table.rows] for n in range(len(table.columns))]
