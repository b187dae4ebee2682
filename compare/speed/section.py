"""Report section of speed and memory: sentences, and the order of tables and plots, from one SpeedComparison."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from compare.sections import Picture, Section, Table
from compare.speed import plots
from compare.speed.contenders import AVX2, COMPILED, FORMULAS, OURS, RECURSION
from compare.speed.measurements import OURS_TUNED
from compare.speed.memory import JSON_KEYS as MEMORY_JSON_KEYS
from compare.speed.memory_tables import network_memory_table, operation_memory_table
from compare.speed.results import STEP, SpeedComparison, TimingRow
from compare.speed.time_tables import compiled_table, networks_table, operations_table

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
        parts += [operations_table(operations), plots.ratios(operations)]
    for allocator, description in ALLOCATORS.items():
        rows = [row for row in networks if row.allocator == allocator and row.contender not in COMPILED.values()]
        if rows:
            parts.append(networks_table(rows, f"One training step, {description}"))
    if networks:
        parts += [plots.times(networks), plots.throughput(networks)]
    if result.compile_seconds:
        parts.append(compiled_table(networks, result))
    if any(row.kind == "network" for row in result.memory):
        parts.append(network_memory_table(result.memory))
    if any(row.kind == "operation" for row in result.memory):
        parts.append(operation_memory_table(result.memory, operations))
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


def _range(values: list[float]) -> str:
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low} to {high}"


def _plural(noun: str, count: int) -> str:
    return noun if count == 1 else f"{noun}s"
