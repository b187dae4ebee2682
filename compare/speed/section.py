"""Report section of speed and memory: tables, sentences and plots, all computed from one SpeedComparison."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from compare.sections import Cell, Picture, Section, Table
from compare.speed import plots
from compare.speed.benchmark import OURS_TUNED
from compare.speed.contenders import AVX2, COMPILED, FORMULAS, OURS, RECURSION
from compare.speed.interleaving import Spread
from compare.speed.memory import JSON_KEYS as MEMORY_JSON_KEYS
from compare.speed.memory import SavedBytes
from compare.speed.results import STEP, MemoryRow, SpeedComparison, TimingRow

ALLOCATORS = {"tuned": "allocator tuned on both sides", "default": "default allocator"}
SUMMARIES = (
    (OURS, "tuned", f"{OURS}, allocator tuned on both sides"),
    (RECURSION, "tuned", f"{RECURSION}, allocator tuned on both sides"),
    (FORMULAS, "tuned", f"{FORMULAS}, allocator tuned on both sides"),
    (AVX2, "tuned", f"{AVX2}, allocator tuned on both sides"),
    (OURS, "default", f"{OURS}, default allocator on both sides"),
    (RECURSION, "default", f"{RECURSION}, default allocator on both sides"),
    (OURS_TUNED, "default", f"{OURS} with its allocator tuned, native with the default allocator"),
)
JSON_KEYS = MEMORY_JSON_KEYS | {  # keys in report.json of fields that have another name here
    "is_fastest_layout": "better",
    "baseline": "against",
    "page_faults": "faults",
    "mismatches": "sentences",
    "load_averages": "load",
    "allocator_settings": "allocator",
    "is_tuned": "tuned",
    "wrong_results": "wrong",
    "not_measured": "missing",
    "compile_seconds": "compiling",
}


def section(result: SpeedComparison) -> Section:
    """Build the report section. Wrong results are a failure and have no time; slowness is no failure."""
    operations = [row for row in result.rows if row.kind == "operation"]
    networks = [row for row in result.rows if row.kind == "network"]
    parts: list[Table | Picture] = []
    if operations:
        parts += [_operations(operations), plots.ratios(operations)]
    for allocator, description in ALLOCATORS.items():
        rows = [row for row in networks if row.allocator == allocator and row.contender not in COMPILED.values()]
        if rows:
            parts.append(_networks(rows, f"One training step, {description}"))
    if networks:
        parts += [plots.times(networks), plots.throughput(networks)]
    if result.compile_seconds:
        parts.append(_compiled(networks, result))
    if any(row.kind == "network" for row in result.memory):
        parts.append(_network_memory(result.memory))
    if any(row.kind == "operation" for row in result.memory):
        parts.append(_operation_memory(result.memory, operations))
    if result.not_measured:
        parts.append(Table("Not measured", ("measurement", "reason"), result.not_measured))
    failures = [
        f"{wrong.subject}: {wrong.contender} is wrong and was not timed: {'; '.join(wrong.mismatches)}."
        for wrong in result.wrong_results
    ]
    compared = len(_right_contenders(result)) + len(result.wrong_results)
    data = asdict(result, dict_factory=_with_json_keys)
    return Section("speed", "Speed and memory", _text(result), parts, failures, data, compared)


def _with_json_keys(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    return {JSON_KEYS.get(name, name): value for name, value in fields}


def _text(result: SpeedComparison) -> list[str]:
    milliseconds = 1000 * result.seconds_per_measurement
    sentences = [
        f"Measured on {result.device} with {result.threads} {_plural('thread', result.threads)}, in "
        f"{result.rounds} {_plural('round', result.rounds)}. In each round every contender runs once, for about "
        f"{milliseconds:g} ms. A ratio is a contender's time over native's in the same round, given as the median "
        f"and the first to third quartile over the rounds; below 1, the contender is faster. Native runs in the "
        f"faster of its two memory layouts, chosen for each row.",
        _correctness(result),
        f"Allocator, where it is tuned: {result.allocator_settings}. Kernels of manualgrad: {result.kernels}.",
    ]
    for contender, allocator, description in SUMMARIES:
        rows = [
            row
            for row in result.rows
            if (row.kind, row.allocator, row.contender) == ("network", allocator, contender)
        ]
        if rows:
            ratios = [row.ratios[STEP].median for row in rows]
            sentences.append(
                f"{description}: a step takes {_range(ratios)} of native's time, over {len(rows)} "
                f"{_plural('size', len(rows))} of the network."
            )
    sentences += _page_faults(result.rows)
    if result.load_averages is not None:
        before, after = result.load_averages
        sentences.append(
            f"The load average of the machine was {before:.2f} before and {after:.2f} after the measurements. Load "
            f"from other work than these {result.threads} {_plural('thread', result.threads)} makes times longer."
        )
    return sentences


def _right_contenders(result: SpeedComparison) -> set[tuple[str, str]]:
    """Subject and contender of all that were checked and found right, and so have a time."""
    checked = [row for row in result.rows if row.side == "ours" or row.contender in COMPILED.values()]
    return {(row.subject, row.contender) for row in checked if row.contender != OURS_TUNED}


def _correctness(result: SpeedComparison) -> str:
    """Sentence on the check of ours and of native compiled; native uncompiled is what they are compared with."""
    num_wrong = len(result.wrong_results)
    wrong = (
        f"{num_wrong} {'was' if num_wrong == 1 else 'were'} wrong and not timed" if num_wrong else "none was wrong"
    )
    return (
        "Before timing, outputs and gradients were compared with native's in float64: "
        f"{len(_right_contenders(result))} pairs of a contender and a size were right, {wrong}."
    )


def _page_faults(rows: Iterable[TimingRow]) -> list[str]:
    """Sentence on page faults of native, tuned and not, for the largest network that was measured both ways: they are
    why the allocator matters."""
    faults: dict[str, dict[str, tuple[int, float]]] = {}
    for row in rows:
        is_baseline = row.kind == "network" and row.side == "native" and row.contender == row.baseline
        if is_baseline and row.page_faults is not None:
            faults.setdefault(row.subject, {})[row.allocator] = (row.batch, row.page_faults)
    with_both = {subject: counts for subject, counts in faults.items() if set(counts) == set(ALLOCATORS)}
    if not with_both:
        return []
    subject, counts = max(with_both.items(), key=lambda item: item[1]["tuned"][0])
    return [
        f"In a step of {subject}, native had {counts['default'][1]:,.0f} page faults with the default allocator and "
        f"{counts['tuned'][1]:,.0f} with the allocator tuned."
    ]


def _operations(rows: list[TimingRow]) -> Table:
    lines = []
    for subject in dict.fromkeys(row.subject for row in rows):
        ours = _ours(rows, subject)
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


def _networks(rows: list[TimingRow], title: str) -> Table:
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


def _compiled(rows: list[TimingRow], result: SpeedComparison) -> Table:
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


def _network_memory(memory: Iterable[MemoryRow]) -> Table:
    memory = [row for row in memory if row.kind == "network"]
    lines = []
    for subject in dict.fromkeys(row.subject for row in memory):
        rows = [row for row in memory if row.subject == subject]
        saved = {row.contender: row.saved.own for row in rows if row.saved}
        native_saved = _smallest(row.saved.own for row in rows if row.side == "native" and row.saved)
        peaks = {row.contender: row.peak.step_bytes for row in rows if row.peak}
        native_peak = _smallest(row.peak.step_bytes for row in rows if row.side == "native" and row.peak)
        lines.append(
            (
                subject,
                _megabytes(saved.get(OURS)),
                _megabytes(native_saved),
                _ratio(saved.get(OURS), native_saved),
                _megabytes(peaks.get(OURS)),
                _megabytes(peaks.get(RECURSION)),
                _megabytes(native_peak),
                _ratio(peaks.get(OURS), native_peak),
                _ratio(peaks.get(RECURSION), native_peak),
            )
        )
    columns = (
        "network",
        "saved, ours, MB",
        "saved, native, MB",
        "saved, ours over native",
        "peak, ours, MB",
        "peak, delta recursion, MB",
        "peak, native, MB",
        "peak, ours over native",
        "peak, delta recursion over native",
    )
    sources = dict.fromkeys(row.peak.how for row in memory if row.peak)
    peak_note = (
        f"Peak: {'; '.join(sources)}, each contender in a process of its own with the default allocator."
        if sources
        else "Peak: not measured."
    )
    note = (
        "Saved: distinct storages that autograd keeps for backward, without inputs and parameters. "
        f"{peak_note} Native: the memory layout that needs less. 1 MB is 1,000,000 bytes."
    )
    return Table("Memory of a training step", columns, lines, note)


def _operation_memory(memory: Iterable[MemoryRow], timed: list[TimingRow]) -> Table:
    lines = []
    saved = {(row.subject, row.contender): row.saved for row in memory if row.kind == "operation" and row.saved}
    for subject in dict.fromkeys(row.subject for row in timed):
        ours, native = _ours(timed, subject), next(row.baseline for row in timed if row.subject == subject)
        our_bytes = saved.get((subject, ours.contender)) if ours else None
        lines.append((subject, *_own_and_total(our_bytes), *_own_and_total(saved.get((subject, native)))))
    columns = ("operation", "ours", "ours, with inputs", "native", "native, with inputs")
    note = (
        "Bytes of distinct storages, in the memory layouts of the table of times. An operation that saves its input "
        "keeps it allocated after its caller has dropped it; in a network this is the output of another operation."
    )
    return Table("Bytes saved for backward, by operation", columns, lines, note)


def _own_and_total(saved: SavedBytes | None) -> tuple[int | None, int | None]:
    return (None, None) if saved is None else (saved.own, saved.own + saved.given)


def _ours(rows: Iterable[TimingRow], subject: str) -> TimingRow | None:
    return next(
        (row for row in rows if row.subject == subject and row.side == "ours" and row.is_fastest_layout), None
    )


def _layout(row: TimingRow) -> str:
    return row.contender.partition(", ")[2] or "only one"


def _range(values: list[float]) -> str:
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low} to {high}"


def _spread(spread: Spread) -> str:
    return f"{spread.median:.2f} ({spread.low:.2f}–{spread.high:.2f})"


def _ms(spread: Spread) -> float:
    return float(f"{1000 * spread.median:.3g}")


def _megabytes(size: int | None) -> float | None:
    return None if size is None else float(f"{size / 1e6:.3g}")


def _ratio(ours: int | None, native: int | None) -> float | None:
    return None if ours is None or not native else round(ours / native, 2)


def _smallest(values: Iterable[int | None]) -> int | None:
    return min((value for value in values if value is not None), default=None)


def _plural(noun: str, count: int) -> str:
    return noun if count == 1 else f"{noun}s"
