"""The report's section on gradients: findings, results by case, errors by dtype, conventions and heat maps."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from compare.case_errors import CaseFailure
from compare.figures import make_figure
from compare.gradients.comparison import Comparison
from compare.gradients.heat_maps import heat_map
from compare.gradients.measure import CLOSE, EQUAL, EXPLAINED, REFUSED, WRONG, Row
from compare.gradients.variants import Variant
from compare.printable import printable
from compare.sections import Picture, Section, Table, failure_tables

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OURS_COLOUR, NATIVE_COLOUR = "#3b82c4", "#e08214"
MAX_ULPS = 1e12  # far beyond any rounding error
MAX_EXAMPLES = 3  # heat maps of rounding errors, if nothing is wrong

# Names in report.json of fields that have other names in Row.
JSON_NAMES = {
    "tolerance_used": "share",
    "ours_value": "here",
    "native_value": "native_here",
    "oracle_value": "oracle_here",
}


def section(comparisons: Sequence[Comparison], failures: Sequence[CaseFailure] = ()) -> Section:
    """Tables of findings, cases, errors by dtype, zeros and ties; heat maps of mistakes or of rounding errors.

    Args:
        failures: the cases that could not be compared.
    """
    errors = [failure.message for failure in failures]
    if not comparisons:
        data, text = [_failure_data(failure) for failure in failures], ["No case could be compared."]
        return Section("gradients", "Gradients", text, failure_tables(failures), [], data, 0, errors)
    compared = [row for c in comparisons for row in c.rows if row.is_compared]
    refused = sum(row.status == REFUSED for c in comparisons for row in c.rows)
    counts = {status: sum(row.status == status for row in compared) for status in (EQUAL, CLOSE, EXPLAINED, WRONG)}
    text = [
        f"{len(comparisons)} {'case was' if len(comparisons) == 1 else 'cases were'} run, and {len(compared):,} "
        f"outputs and gradients compared. The expected values are those of native PyTorch in float64. "
        f"{counts[EQUAL]:,} equal native's values in the same dtype bit for bit, {counts[CLOSE]:,} are within the "
        f"tolerance, {counts[EXPLAINED]:,} differ only where a convention allows it, "
        f"and {counts[WRONG]:,} are wrong.",
        "The tolerance of an element is twice native's largest error in the same dtype, plus the change of the "
        "expected value when the inputs change by a few rounding errors, plus 2 ulp; at a kink that rounding may "
        "cross, it is the jump there, of this element alone. Cases are also run on inputs rounded to whole numbers, "
        "which have exact zeros and ties; with other incoming gradients; with only some inputs that require a "
        "gradient; and in several calls, before and between each other.",
    ]
    if without := [c.case.name for c in comparisons if c.case.native is None]:
        text.append(
            f"Without a native function: {', '.join(without)}. There the forward is unchecked, and the expected "
            "gradients are finite differences of the function itself in float64."
        )
    if refused:
        text.append(
            f"{refused} runs are left out because native PyTorch raises in them, or has no complex numbers of that "
            "precision; the report has the reasons."
        )
    parts: list[Table | Picture] = failure_tables(failures)
    if findings := _findings(comparisons):
        parts.append(findings)
    parts += [_cases(comparisons), *_error_plot(comparisons)]
    if explained := _explained(comparisons):
        parts.append(explained)
    parts += _errors(comparisons)
    parts += _unchecked(comparisons)
    parts.append(_census(comparisons))
    parts += _heat_maps(comparisons)
    sentences = [
        f"{c.case.name}: {finding.quantity}: {finding.statement} ({finding.kind_in_words})"
        for c in comparisons
        for finding in c.findings
    ]
    data = [*map(_data, comparisons), *map(_failure_data, failures)]
    return Section("gradients", "Gradients", text, parts, sentences, data, len(compared), errors)


def _findings(comparisons: Sequence[Comparison]) -> Table | None:
    rows = [
        (c.case.name, f.quantity, f.kind_in_words, f.statement, "; ".join(filter(None, (f.evidence, f.correction))))
        for c in comparisons
        for f in c.findings
    ]
    columns = ("case", "quantity", "kind of mistake", "finding", "evidence")
    note = " ".join(f"{c.case.name}: {c.search_note}" for c in comparisons if c.search_note)
    return Table("Findings", columns, rows, note, failed=range(len(rows))) if rows else None


def _cases(comparisons: Sequence[Comparison]) -> Table:
    rows = []
    for c in comparisons:
        compared = [row for row in c.rows if row.is_compared]
        counts = [sum(row.status == status for row in compared) for status in (EQUAL, CLOSE, EXPLAINED, WRONG)]
        measured = [row for row in compared if row.tolerance_used == row.tolerance_used]  # not NaN: has numbers
        worst = max(measured, key=lambda row: row.tolerance_used, default=None)
        largest = (_percent(worst.tolerance_used), f"{worst.quantity}, {worst.variant}") if worst else (None, "")
        rows.append((c.case.name, len(compared), *counts, *largest))
    columns = ("case", "compared", "same bits", "within tolerance", "by convention", "wrong",
               "largest error, % of tolerance", "largest error in")  # fmt: skip
    failed = [n for n, c in enumerate(comparisons) if not c.ok]
    return Table("Results by case", columns, rows, failed=failed)


def _percent(fraction: float) -> float:
    return round(100 * fraction) if math.isfinite(100 * fraction) else fraction


def _errors(comparisons: Sequence[Comparison]) -> list[Table]:
    dtypes = dict.fromkeys(row.variant.dtype for c in comparisons for row in c.rows)
    columns = ("case", "quantity", "max abs error", "max rel error", "ulp", "native ulp", "ours / native",
               "error, % of tolerance", "worst element", "ours", "native", "expected", "1 - cosine")  # fmt: skip
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
        note = "Contiguous tensors of random numbers. Other layouts and whole numbers are in report.json."
        tables.append(Table(f"Errors in {name}", columns, rows, note, failed, detail=True))
    return tables


def _numbers(row: Row) -> tuple[Any, ...]:
    if row.message:
        return (None,) * 6 + (row.message,) + (None,) * 4
    index = "[" + ", ".join(map(str, row.index)) + "]"
    return (row.error, row.relative, row.ulps, row.native_ulps, row.ratio, 100 * row.tolerance_used, index,
            row.ours_value, row.native_value, row.oracle_value, 1 - row.cosine)  # fmt: skip


def _explained(comparisons: Sequence[Comparison]) -> Table | None:
    rows = [(c.case.name, name, count) for c in comparisons for name, count in c.explained().items()]
    note = "Elements that differ from native and follow the convention, over all variants of the case."
    return Table("Explained by a convention", ("case", "convention", "elements"), rows, note) if rows else None


def _unchecked(comparisons: Sequence[Comparison]) -> list[Table]:
    rows = [(c.case.name, sentence) for c in comparisons for sentence in c.unchecked()]
    return [Table("Not compared, and elements at kinks", ("case", ""), rows, detail=True)] if rows else []


def _census(comparisons: Sequence[Comparison]) -> Table:
    rows = []
    for c in comparisons:
        names = dict.fromkeys(name for counts in c.census.values() for name in counts)
        for name in names:
            rows.append(
                (c.case.name, name, *(c.census.get(data, {}).get(name) for data in ("drawn", "whole numbers")))
            )
    note = "Where a value is exactly 0, or a maximum is tied, the derivative is a convention."
    columns = ("case", "counted", "random inputs", "whole numbers")
    return Table("Zeros and ties in the data", columns, rows, note, detail=True)


def _error_plot(comparisons: Sequence[Comparison]) -> list[Picture]:
    """The largest finite error of each case in float32, ours and native's, in ulp; no picture if there is none."""
    points = []
    for c in comparisons:
        float32 = [
            r
            for r in c.rows
            if r.variant.dtype is torch.float32
            and r.variant.data == "drawn"
            and max(r.ulps, r.native_ulps) < MAX_ULPS  # neither NaN nor infinite, nor more than a picture can show
        ]
        if float32:
            points.append((printable(c.case.name), max(r.ulps for r in float32), max(r.native_ulps for r in float32)))

    if not points:
        return []

    def draw() -> Figure:
        figure = make_figure(7, 0.6 + 0.26 * len(points))
        axes = figure.subplots()
        for n, (_, ours, native) in enumerate(reversed(points)):
            axes.plot([ours, native], [n, n], color="#888888", linewidth=1, zorder=1)
            axes.scatter(
                [native], [n], color=NATIVE_COLOUR, s=34, marker="D", zorder=2, label="native" if n == 0 else None
            )
            axes.scatter([ours], [n], color=OURS_COLOUR, s=26, zorder=3, label="ours" if n == 0 else None)
        axes.set_yticks(range(len(points)), [name for name, *_ in reversed(points)], parse_math=False)
        axes.set(xlabel="largest error in float32, ulp of the largest element", xlim=(0, None))
        axes.grid(axis="x", alpha=0.25)
        axes.legend(frameon=False)
        return figure

    larger = sum(ours > native for _, ours, native in points)
    alt = "One row per case: the largest float32 error of ours and of native. "
    alt += f"Ours is larger in {larger} of {len(points)} cases."
    return [Picture("Rounding errors of ours and native", draw, alt, alt)]


def _heat_maps(comparisons: Sequence[Comparison]) -> list[Picture]:
    """Heat maps of every wrong quantity; if nothing is wrong, of the last gradients of images and kernels."""
    chosen = [(c, f.quantity) for c in comparisons for f in c.findings if f.quantity in c.examples]
    if not chosen:
        four_dimensional = [
            (c, name) for c in comparisons for name, example in c.examples.items()
            if name.startswith("gradient") and example.oracle.dim() == 4
        ]  # fmt: skip
        chosen = four_dimensional[-MAX_EXAMPLES:]
    pictures = []
    for c, name in chosen:
        example = c.examples[name]
        if example.ours.shape != example.oracle.shape:
            continue
        if not example.oracle.numel():
            continue
        difference = (example.ours - example.oracle).abs()
        equal = (example.ours == example.oracle) | (example.ours.isnan() & example.oracle.isnan())
        largest = float(difference.masked_fill(equal, 0.0).nan_to_num(math.inf).max())
        alt = f"{c.case.name}, {name}, in {example.variant}: ours, the expected values, and their difference, "
        alt += f"which is at most {largest:.2g}." if math.isfinite(largest) else "which is not finite everywhere."
        title = f"{c.case.name}: {name}"
        pictures.append(Picture(title, partial(heat_map, example.ours, example.oracle), alt, alt))
    return pictures


def _data(comparison: Comparison) -> dict[str, Any]:
    rows = []
    for row in comparison.rows:
        fields = {JSON_NAMES.get(f.name, f.name): getattr(row, f.name) for f in dataclasses.fields(row)}
        fields["variant"] = str(row.variant)
        fields["index"] = list(row.index)
        rows.append(fields)
    return {
        "case": comparison.case.name,
        "ok": comparison.ok,
        "search_note": comparison.search_note,
        "findings": [dataclasses.asdict(finding) for finding in comparison.findings],
        "census": comparison.census,
        "rows": rows,
    }


def _failure_data(failure: CaseFailure) -> dict[str, Any]:
    return {"case": failure.case, "ok": False, "findings": [], "census": {}, "rows": []} | failure.as_data()
