"""Report section of the speed on CUDA: one table and one plot for each precision."""

from __future__ import annotations

from dataclasses import asdict

from compare.sections import Cell, Picture, Section, Table
from compare.speed import cuda_plots
from compare.speed.cuda_benchmark import PRECISIONS, CudaRow, CudaSpeed
from compare.speed.interleaving import ratios_by_round

COLUMNS = (
    "subject", "contender", "ms", "x the fastest native", "x the fastest native of the mode", "error", "TFLOP/s",
    "% of a matrix product's",
    "% of a copy's bytes/s", "peak MiB",
)  # fmt: skip


def section(result: CudaSpeed) -> Section:
    """Build the report section. Wrong results are a failure and have no time; slowness is no failure."""
    parts: list[Table | Picture] = [_table(result, precision) for precision in PRECISIONS]
    for precision in PRECISIONS:
        rows = [row for row in result.rows if row.precision == precision and row.subject in result.batches]
        if rows:
            parts.append(cuda_plots.times(rows, result.batches, PRECISIONS[precision]))
    if result.not_measured:
        parts.append(Table("Not measured", ("contender", "reason"), result.not_measured))
    text = [
        f"A copy takes {result.bytes_per_second / 1e9:.0f} GB/s on this card; a matrix product "
        + ", ".join(f"{rate / 1e12:.1f} TFLOP/s ({name})" for name, rate in result.flops_per_second.items())
        + ".",
        *(fastest_sentence(result, subject, precision) for precision in PRECISIONS for subject in result.flops),
    ]
    compared = len(result.rows) + len(result.wrong)
    return Section("speed", "Speed on CUDA", text, parts, result.wrong, asdict(result), compared, result.errors)


def fastest_sentence(result: CudaSpeed, subject: str, precision: str) -> str:
    """Name the fastest contender of a subject, and ours beside the fastest native one."""
    rows = [row for row in result.rows if (row.subject, row.precision) == (subject, precision)]
    ours, native = ([row for row in rows if row.side == side] for side in ("ours", "native"))
    if not ours or not native:
        return f"{subject}, {precision}: no comparison, since a side has no time."
    best, best_native = min(ours, key=_seconds), min(native, key=_seconds)
    ratio = ratios_by_round(best.rounds, best_native.rounds).median
    return (
        f"{subject}, {precision}: the fastest is {_label(min(rows, key=_seconds))}; ours at its fastest takes "
        f"{ratio:.2f} x native's at its fastest ({_label(best_native)})."
    )


def _table(result: CudaSpeed, precision: str) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for row in result.rows:
        if row.precision != precision:
            continue
        native = [
            other
            for other in result.rows
            if (other.subject, other.precision, other.side) == (row.subject, row.precision, "native")
        ]
        flops, numbytes = result.flops[row.subject] / row.seconds, result.numbytes.get(row.subject)
        rows.append((
            row.subject, _label(row), 1000 * row.seconds, _ratio(row, native),
            _ratio(row, [other for other in native if other.mode == row.mode]), f"{row.error:.1e}", flops / 1e12,
            100 * flops / result.flops_per_second[precision],
            None if numbytes is None else 100 * numbytes / row.seconds / result.bytes_per_second,
            None if row.peak_bytes is None else row.peak_bytes / 2**20,
        ))  # fmt: skip
    note = (
        "Ratios are medians over rounds in which every contender ran. TFLOP/s counts the products of native's step, "
        "for both sides; bytes are those of inputs and gradients. The error is the largest of a step's results, "
        "relative to its norm: for DocumentCNN against float64, for others against native eager with the same flags. "
        "cuDNN chooses its algorithms by measuring them (torch.backends.cudnn.benchmark)."
    )
    return Table(f"One training step on CUDA: {PRECISIONS[precision]}", COLUMNS, rows, note)


def _ratio(row: CudaRow, native: list[CudaRow]) -> float | None:
    """Median over the rounds of the time of ``row`` over that of the fastest of ``native``; None if there is none."""
    return ratios_by_round(row.rounds, min(native, key=_seconds).rounds).median if native else None


def _label(row: CudaRow) -> str:
    return f"{row.side}, {row.layout}, {row.mode}"


def _seconds(row: CudaRow) -> float:
    return row.seconds
