"""Tables of times: operations, networks, and native under ``torch.compile``."""

from __future__ import annotations

from collections.abc import Iterable

from compare.sections import Cell, Table
from compare.speed.contenders import COMPILED
from compare.speed.interleaving import Spread
from compare.speed.results import STEP, SpeedComparison, TimingRow


def operations_table(rows: list[TimingRow]) -> Table:
    """Table of single operations, ours over native."""
    lines = []
    for subject in dict.fromkeys(row.subject for row in rows):
        ours = our_row(rows, subject)
        native = next(row for row in rows if row.subject == subject and row.contender == row.baseline)
        if ours is None:
            lines.append((subject, None, _ms(native.seconds[STEP]), "wrong", "wrong", "wrong", _layout(native)))
            continue
        lines.append(
            (
                subject,
                _ms(ours.seconds[STEP]),
                _ms(native.seconds[STEP]),
                *(_spread(ours.ratios[phase]) for phase in ("forward", "backward", STEP)),
                " / ".join(dict.fromkeys((_layout(ours), _layout(native)))),
            )
        )
    columns = (
        "operation",
        "ours, ms",
        "native, ms",
        "ratio, forward",
        "ratio, backward",
        "ratio, both",
        "layout (ours / native)",
    )
    note = (
        f"Batch {rows[0].batch}, channels {rows[0].channels}, allocator tuned. Milliseconds are for forward and "
        "backward together. Each side runs in the faster of its memory layouts. The first convolution computes no "
        "gradient for the images."
    )
    return Table("Operations, ours over native", columns, lines, note)


def networks_table(rows: list[TimingRow], title: str) -> Table:
    """Table of training steps of networks, a line for each contender in its faster layout."""
    lines: list[list[Cell]] = []
    for row in rows:
        if not row.is_fastest_layout:
            continue
        phases = [row.seconds.get(phase) for phase in ("forward", "backward", "update")]
        lines.append(
            [
                row.subject,
                row.contender,
                *(None if phase is None else _ms(phase) for phase in phases),
                _ms(row.seconds[STEP]),
                "1" if row.contender == row.baseline else _spread(row.ratios[STEP]),
                round(row.images_per_second),
                None if row.page_faults is None else round(row.page_faults),
            ]
        )
    columns = (
        "network",
        "contender",
        "forward, ms",
        "backward, ms",
        "update, ms",
        "step, ms",
        "step, ratio to native",
        "images/s",
        "page faults",
    )
    note = (
        "The delta recursion (--engine document) computes the whole step in one call, so it has no phases. Page "
        "faults are the median of one step."
    )
    return Table(title, columns, lines, note)


def compiled_table(rows: list[TimingRow], result: SpeedComparison) -> Table:
    """Table of native under ``torch.compile``, over native uncompiled."""
    lines = [
        (
            row.subject,
            row.contender,
            round(result.compile_seconds[row.subject], 1),
            _ms(row.seconds[STEP]),
            *(_spread(row.ratios[phase]) for phase in ("forward", "backward", STEP)),
        )
        for row in rows
        if row.contender in COMPILED.values()
    ]
    columns = (
        "network",
        "contender",
        "compilation, s",
        "step, ms",
        "forward, ratio",
        "backward, ratio",
        "step, ratio to uncompiled",
    )
    note = "Times exclude compilation. PyTorch may have found parts of it in its cache from an earlier run."
    return Table("Native under torch.compile, over native uncompiled", columns, lines, note)


def our_row(rows: Iterable[TimingRow], subject: str) -> TimingRow | None:
    """Ours on ``subject`` in its faster layout; None if its results were wrong."""
    return next(
        (row for row in rows if row.subject == subject and row.side == "ours" and row.is_fastest_layout), None
    )


def _layout(row: TimingRow) -> str:
    return row.contender.partition(", ")[2] or "only one"


def _spread(spread: Spread) -> str:
    return f"{spread.median:.2f} ({spread.low:.2f}–{spread.high:.2f})"


def _ms(spread: Spread) -> float:
    return float(f"{1000 * spread.median:.3g}")
