"""Tables of memory: a network's training step, and the bytes that each operation saves for backward."""

from __future__ import annotations

from collections.abc import Iterable

from compare.sections import Table
from compare.speed.contenders import OURS, RECURSION
from compare.speed.memory import SavedBytes
from compare.speed.results import MemoryRow, TimingRow
from compare.speed.time_tables import our_row


def network_memory_table(memory: Iterable[MemoryRow]) -> Table:
    """Table of a training step's memory, a line for each network."""
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


def operation_memory_table(memory: Iterable[MemoryRow], timed: list[TimingRow]) -> Table:
    """Table of the bytes that each operation saves for backward."""
    lines = []
    saved = {(row.subject, row.contender): row.saved for row in memory if row.kind == "operation" and row.saved}
    for subject in dict.fromkeys(row.subject for row in timed):
        ours, native = our_row(timed, subject), next(row.baseline for row in timed if row.subject == subject)
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


def _megabytes(size: int | None) -> float | None:
    return None if size is None else float(f"{size / 1e6:.3g}")


def _ratio(ours: int | None, native: int | None) -> float | None:
    return None if ours is None or not native else round(ours / native, 2)


def _smallest(values: Iterable[int | None]) -> int | None:
    return min((value for value in values if value is not None), default=None)
