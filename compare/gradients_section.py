"""The comparisons of gradients as a section: what is wrong, case by case, errors, and where conventions differ."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure

from compare.errors import CLOSE, EQUAL, EXPLAINED, REFUSED, WRONG, Row
from compare.gradients import Comparison
from compare.heat_maps import heat_map
from compare.sections import Picture, Section, Table
from compare.variants import Variant

OURS, NATIVE = "#3b82c4", "#e08214"
EXAMPLES = 3  # heat maps of rounding errors, where nothing is wrong


def section(comparisons: Sequence[Comparison]) -> Section:
    """Tables of findings, cases, errors in each dtype, zeros and ties; heat maps of what is wrong, or of rounding."""
    compared = [row for c in comparisons for row in c.rows if row.status != REFUSED]
    refused = sum(row.status == REFUSED for c in comparisons for row in c.rows)
    counts = {status: sum(row.status == status for row in compared) for status in (EQUAL, CLOSE, EXPLAINED, WRONG)}
    text = [
        f"{len(comparisons)} cases were run, and {len(compared):,} outputs and gradients compared with native "
        f"PyTorch's, both measured against native float64. Of them {counts[EQUAL]:,} have native's bits, "
        f"{counts[CLOSE]:,} differ within the tolerance, {counts[EXPLAINED]:,} differ where a convention says so, "
        f"and {counts[WRONG]:,} differ and nothing explains it.",
        "An element may be off by twice native's own largest error, plus what the right answer itself does when "
        "inputs change by a few roundings, plus 2 ulp. Inputs rounded to whole numbers bring exact zeros and ties.",
    ]
    if refused:
        text.append(f"{refused} runs were left out because native PyTorch refuses them.")
    parts: list[Table | Picture] = []
    if findings := _findings(comparisons):
        parts.append(findings)
    parts += [_cases(comparisons), _error_plot(comparisons)]
    if explained := _explained(comparisons):
        parts.append(explained)
    parts += _errors(comparisons)
    parts.append(_census(comparisons))
    parts += _heat_maps(comparisons)
    failures = [
        f"{c.case.name}: {finding.quantity}: {finding.statement} ({finding.kind})"
        for c in comparisons
        for finding in c.findings
    ]
    return Section(
        "gradients", "Gradient for gradient", text, parts, failures, [_data(c) for c in comparisons], len(compared)
    )


def _findings(comparisons: Sequence[Comparison]) -> Table | None:
    rows = [(c.case.name, f.quantity, f.kind, f.statement, f.evidence) for c in comparisons for f in c.findings]
    columns = ("case", "quantity", "kind of wrong", "what it looks like", "evidence")
    return Table("What is wrong", columns, rows, failed=range(len(rows))) if rows else None


def _cases(comparisons: Sequence[Comparison]) -> Table:
    rows = []
    for c in comparisons:
        compared = [row for row in c.rows if row.status != REFUSED]
        counts = [sum(row.status == status for row in compared) for status in (EQUAL, CLOSE, EXPLAINED, WRONG)]
        judged = [row for row in compared if row.share == row.share]  # not NaN: numbers were compared
        worst = max(judged, key=lambda row: row.share, default=None)
        closest = (round(100 * worst.share), f"{worst.quantity}, {worst.variant}") if worst else (None, "")
        rows.append((c.case.name, len(compared), *counts, *closest))
    columns = ("case", "compared", "same bits", "close", "explained", "wrong", "tolerance used, %", "by")
    failed = [n for n, c in enumerate(comparisons) if not c.ok]
    return Table("Case by case", columns, rows, failed=failed)


def _errors(comparisons: Sequence[Comparison]) -> list[Table]:
    dtypes = dict.fromkeys(row.variant.dtype for c in comparisons for row in c.rows)
    columns = ("case", "quantity", "max abs error", "max rel error", "ulp", "native ulp", "ours / native",
               "tolerance used, %", "worst at", "ours", "native", "right there", "1 - cosine")  # fmt: skip
    tables = []
    for dtype in dtypes:
        rows, failed = [], []
        for c in comparisons:
            for row in c.rows:
                if row.variant == Variant(dtype, device=row.variant.device) and row.status != REFUSED:
                    if row.status == WRONG:
                        failed.append(len(rows))
                    rows.append((c.case.name, row.quantity, *_numbers(row)))
        name = str(dtype).removeprefix("torch.")
        note = "Contiguous memory, drawn numbers; every other layout is counted above and stands in report.json."
        tables.append(Table(f"Errors in {name}", columns, rows, note, failed, detail=True))
    return tables


def _numbers(row: Row) -> tuple[Any, ...]:
    if row.message:
        return (None,) * 6 + (row.message,) + (None,) * 4
    index = "[" + ", ".join(map(str, row.index)) + "]"
    return (row.error, row.relative, row.ulps, row.native_ulps, row.ratio, 100 * row.share, index, row.here,
            row.native_here, row.oracle_here, 1 - row.cosine)  # fmt: skip


def _explained(comparisons: Sequence[Comparison]) -> Table | None:
    rows = [(c.case.name, name, count) for c in comparisons for name, count in c.explained().items()]
    note = (
        "Elements that differ from native PyTorch and equal what the convention says, over all variants of the case."
    )
    return Table("Explained by a convention", ("case", "convention", "elements"), rows, note) if rows else None


def _census(comparisons: Sequence[Comparison]) -> Table:
    rows = []
    for c in comparisons:
        names = dict.fromkeys(name for counts in c.census.values() for name in counts)
        for name in names:
            rows.append(
                (c.case.name, name, *(c.census.get(data, {}).get(name) for data in ("drawn", "whole numbers")))
            )
    note = "Where a value is exactly 0, or a maximum is tied, the derivative is a convention."
    return Table("Zeros and ties in the data", ("case", "what", "drawn", "whole numbers"), rows, note, detail=True)


def _error_plot(comparisons: Sequence[Comparison]) -> Picture:
    """The worst error of each case in float32, ours and native, in ulp."""
    points = []
    for c in comparisons:
        plain = [
            r for r in c.rows if r.variant.dtype is torch.float32 and r.variant.data == "drawn" and r.ulps == r.ulps
        ]
        if plain:
            points.append((c.case.name, max(r.ulps for r in plain), max(r.native_ulps for r in plain)))

    def draw() -> Figure:
        figure = Figure(figsize=(7, 0.6 + 0.26 * max(1, len(points))), layout="constrained")
        axes = figure.subplots()
        for n, (_, ours, native) in enumerate(reversed(points)):
            axes.plot([ours, native], [n, n], color="#888888", linewidth=1, zorder=1)
            axes.scatter([native], [n], color=NATIVE, s=34, marker="D", zorder=2, label="native" if n == 0 else None)
            axes.scatter([ours], [n], color=OURS, s=26, zorder=3, label="ours" if n == 0 else None)
        axes.set_yticks(range(len(points)), [name for name, *_ in reversed(points)])
        axes.set(xlabel="largest error in float32, ulp of the largest element", xlim=(0, None))
        axes.grid(axis="x", alpha=0.25)
        axes.legend(frameon=False)
        return figure

    larger = sum(ours > native for _, ours, native in points)
    alt = "One row a case: the largest float32 error of ours and of native. "
    alt += f"Ours is the larger in {larger} of {len(points)}."
    return Picture("Rounding errors, ours and native", draw, alt, alt)


def _heat_maps(comparisons: Sequence[Comparison]) -> list[Picture]:
    chosen = [(c, f.quantity) for c in comparisons for f in c.findings if f.quantity in c.pictures]
    if not chosen:
        shown = [
            (c, name) for c in comparisons for name, s in c.pictures.items()
            if name.startswith("gradient") and s.oracle.dim() == 4
        ]  # fmt: skip
        chosen = shown[-EXAMPLES:]
    pictures = []
    for c, name in chosen:
        shown = c.pictures[name]
        if shown.ours.shape != shown.oracle.shape:
            continue
        largest = float((shown.ours - shown.oracle).abs().nan_to_num(0.0).max()) if shown.oracle.numel() else 0.0
        alt = f"{c.case.name}, {name}, in {shown.variant}: ours, the right one, and their difference, "
        alt += f"at most {largest:.2g}."
        title = f"{c.case.name}: {name}"
        pictures.append(Picture(title, partial(heat_map, shown.ours, shown.oracle), alt, alt))
    return pictures


def _data(comparison: Comparison) -> dict[str, Any]:
    rows = []
    for row in comparison.rows:
        named = {f.name: getattr(row, f.name) for f in dataclasses.fields(row)}
        named["variant"] = str(row.variant)
        named["index"] = list(row.index)
        rows.append(named)
    return {
        "case": comparison.case.name,
        "ok": comparison.ok,
        "findings": [dataclasses.asdict(finding) for finding in comparison.findings],
        "census": comparison.census,
        "rows": rows,
    }
