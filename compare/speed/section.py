"""Speed and memory as tables, sentences and pictures; every number is of the run that it is given."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict

from compare.sections import Cell, Picture, Section, Table
from compare.speed import pictures as speed_pictures
from compare.speed.measuring import TUNED_PROCESS
from compare.speed.networks import AVX2, COMPILED, DOCUMENT, FORMULAS, OURS
from compare.speed.rows import WHOLE, MemoryRow, Row, SpeedComparison
from compare.speed.turns import Spread

ALLOCATORS = {"tuned": "allocator tuned on both sides", "as shipped": "allocator as shipped"}
CLAIMS = (
    (OURS, "tuned", f"{OURS}, allocator tuned on both sides"),
    (DOCUMENT, "tuned", f"{DOCUMENT}, allocator tuned on both sides"),
    (FORMULAS, "tuned", f"{FORMULAS}, allocator tuned on both sides"),
    (AVX2, "tuned", f"{AVX2}, allocator tuned on both sides"),
    (OURS, "as shipped", f"{OURS}, allocator as shipped on both sides"),
    (DOCUMENT, "as shipped", f"{DOCUMENT}, allocator as shipped on both sides"),
    (TUNED_PROCESS, "as shipped", f"{OURS} with its allocator tuned, native's as shipped"),
)


def section(result: SpeedComparison) -> Section:
    """A slow result is a result; a wrong one is a failure, and has no time."""
    operations = [row for row in result.rows if row.kind == "operation"]
    networks = [row for row in result.rows if row.kind == "network"]
    parts: list[Table | Picture] = []
    if operations:
        parts += [_operations(operations), speed_pictures.ratios(operations)]
    for allocator, words in ALLOCATORS.items():
        rows = [row for row in networks if row.allocator == allocator and row.contender not in COMPILED.values()]
        if rows:
            parts.append(_networks(rows, f"One step of training, {words}"))
    if networks:
        parts += [speed_pictures.times(networks), speed_pictures.throughput(networks)]
    if result.compiling:
        parts.append(_compiled(networks, result))
    if any(row.kind == "network" for row in result.memory):
        parts.append(_network_memory(result.memory))
    if any(row.kind == "operation" for row in result.memory):
        parts.append(_operation_memory(result.memory, operations))
    if result.missing:
        parts.append(Table("Not measured", ("what", "why"), result.missing))
    failures = [
        f"{one.subject}: {one.contender} is wrong and was not timed: {'; '.join(one.sentences)}."
        for one in result.wrong
    ]
    compared = len(_right(result)) + len(result.wrong)
    title = "Speed and memory, side by side"
    return Section("speed", title, _text(result), parts, failures, asdict(result), compared)


def _text(result: SpeedComparison) -> list[str]:
    sentences = [
        f"Both sides took turns on {result.device} with {result.threads} {_plural('thread', result.threads)}: "
        f"{result.rounds} {_plural('round', result.rounds)}, each of one turn of about "
        f"{1000 * result.seconds_per_measurement:g} ms for every contender. A ratio is a contender's time over "
        f"native's in the same round, as its median (first to third quartile); below 1, the contender is faster. "
        f"Native is in the faster of its two memory layouts, chosen for each row.",
        _checked(result),
        f"Allocator, where it is tuned: {result.allocator}. Ours: {result.kernels}.",
    ]
    for contender, allocator, words in CLAIMS:
        rows = [row for row in result.rows if _is(row, "network", allocator, contender)]
        if rows:
            ratios = [row.ratios[WHOLE].median for row in rows]
            sentences.append(
                f"{words}: a step takes {_range(ratios)} of native's time, over {len(rows)} "
                f"{_plural('size', len(rows))} of the network."
            )
    sentences += _faults(result.rows)
    if result.load is not None:
        before, after = result.load
        sentences.append(
            f"The machine's load average was {before:.2f} before and {after:.2f} after. What exceeds this run's own "
            f"{result.threads} {_plural('thread', result.threads)}, before it or beside it, makes times longer."
        )
    return sentences


def _right(result: SpeedComparison) -> set[tuple[str, str]]:
    """Of what was checked, what was right, and so has a time."""
    checked = [row for row in result.rows if row.side == "ours" or row.contender in COMPILED.values()]
    return {(row.subject, row.contender) for row in checked if row.contender != TUNED_PROCESS}


def _checked(result: SpeedComparison) -> str:
    """Of ours, and of native compiled: native as it is is the measure."""
    wrong = f"{len(result.wrong)} {'was' if len(result.wrong) == 1 else 'were'} wrong and not timed"
    return (
        "Before anything was timed, outputs and gradients were compared with native's in float64: "
        f"{len(_right(result))} pairs of a contender and a size were right, "
        f"{wrong if result.wrong else 'none was wrong'}."
    )


def _faults(rows: Iterable[Row]) -> list[str]:
    """Why the allocator matters: pages asked of the system in a step, of the largest network seen both ways."""
    found: dict[str, dict[str, tuple[int, float]]] = {}
    for row in rows:
        if row.kind == "network" and row.side == "native" and row.contender == row.against and row.faults is not None:
            found.setdefault(row.subject, {})[row.allocator] = (row.batch, row.faults)
    both = {subject: seen for subject, seen in found.items() if set(seen) == set(ALLOCATORS)}
    if not both:
        return []
    subject, seen = max(both.items(), key=lambda item: item[1]["tuned"][0])
    return [
        f"In a step of {subject}, native had {seen['as shipped'][1]:,.0f} page faults with the allocator as shipped "
        f"and {seen['tuned'][1]:,.0f} with it tuned."
    ]


def _operations(rows: list[Row]) -> Table:
    lines = []
    for subject in dict.fromkeys(row.subject for row in rows):
        ours = _ours(rows, subject)
        native = next(row for row in rows if row.subject == subject and row.contender == row.against)
        if ours is None:
            lines.append((subject, None, _ms(native.seconds[WHOLE]), "wrong", "wrong", "wrong", _layout(native)))
            continue
        lines.append(
            (
                subject,
                _ms(ours.seconds[WHOLE]),
                _ms(native.seconds[WHOLE]),
                *(_spread(ours.ratios[phase]) for phase in ("forward", "backward", WHOLE)),
                " / ".join(dict.fromkeys((_layout(ours), _layout(native)))),
            )
        )
    columns = ("operation", "ours, ms", "native, ms", "forward", "backward", "both", "layout (ours / native)")
    note = (
        f"Batch {rows[0].batch}, channels {rows[0].channels}, allocator tuned. Times are of forward and backward. "
        f"Each side is in the faster of its layouts. The first convolution has no gradient for the images."
    )
    return Table("Operations, ours over native", columns, lines, note)


def _networks(rows: list[Row], title: str) -> Table:
    lines: list[list[Cell]] = []
    for row in rows:
        if not row.better:
            continue
        phases = [row.seconds.get(phase) for phase in ("forward", "backward", "update")]
        lines.append(
            [
                row.subject,
                row.contender,
                *(None if phase is None else _ms(phase) for phase in phases),
                _ms(row.seconds[WHOLE]),
                "1" if row.contender == row.against else _spread(row.ratios[WHOLE]),
                round(row.images_per_second),
                None if row.faults is None else round(row.faults),
            ]
        )
    columns = (
        "network",
        "contender",
        "forward, ms",
        "backward, ms",
        "update, ms",
        "step, ms",
        "step over native's",
        "images/s",
        "page faults",
    )
    note = "The document's engine takes its step at once. Page faults are of one step, the median."
    return Table(title, columns, lines, note)


def _compiled(rows: list[Row], result: SpeedComparison) -> Table:
    lines = [
        (
            row.subject,
            row.contender,
            round(result.compiling[row.subject], 1),
            _ms(row.seconds[WHOLE]),
            *(_spread(row.ratios[phase]) for phase in ("forward", "backward", WHOLE)),
        )
        for row in rows
        if row.contender in COMPILED.values()
    ]
    columns = ("network", "contender", "compiling, s", "step, ms", "forward", "backward", "step over not compiled")
    note = "Compiling is not in the times; PyTorch may have found parts of it in its cache from an earlier run."
    return Table("Native under torch.compile, over native", columns, lines, note)


def _network_memory(rows: Iterable[MemoryRow]) -> Table:
    rows = [row for row in rows if row.kind == "network"]
    lines = []
    for subject in dict.fromkeys(row.subject for row in rows):
        own = {row.contender: row.saved.own for row in rows if row.subject == subject and row.saved}
        native = _least(row.saved.own for row in rows if _native(row, subject) and row.saved)
        peaks = {row.contender: row.peak.step for row in rows if row.subject == subject and row.peak}
        native_peak = _least(row.peak.step for row in rows if _native(row, subject) and row.peak)
        lines.append(
            (
                subject,
                _mb(own.get(OURS)),
                _mb(native),
                _over(own.get(OURS), native),
                _mb(peaks.get(OURS)),
                _mb(peaks.get(DOCUMENT)),
                _mb(native_peak),
                _over(peaks.get(OURS), native_peak),
                _over(peaks.get(DOCUMENT), native_peak),
            )
        )
    columns = (
        "network",
        "saved, ours, MB",
        "saved, native, MB",
        "saved, ours over native",
        "peak, ours, MB",
        "peak, document's engine, MB",
        "peak, native, MB",
        "peak, ours over native",
        "peak, document's engine over native",
    )
    hows = dict.fromkeys(row.peak.how for row in rows if row.peak)
    note = (
        "Saved: distinct storages that autograd keeps for backward, without inputs and parameters. "
        + (
            f"Peak: {'; '.join(hows)}, in a process of its own, allocator as shipped. "
            if hows
            else "Peak: not measured. "
        )
        + "Native: the layout that needs less. 1 MB is 1,000,000 bytes."
    )
    return Table("Memory of a step of training", columns, lines, note)


def _operation_memory(memory: Iterable[MemoryRow], timed: list[Row]) -> Table:
    lines = []
    by_name = {(row.subject, row.contender): row.saved for row in memory if row.kind == "operation" and row.saved}
    for subject in dict.fromkeys(row.subject for row in timed):
        ours, native = _ours(timed, subject), next(row.against for row in timed if row.subject == subject)
        a = by_name.get((subject, ours.contender)) if ours else None
        b = by_name.get((subject, native))
        lines.append((subject, *(None if one is None else value for one in (a, b) for value in _bytes(one))))
    columns = ("operation", "ours", "ours, with inputs", "native", "native, with inputs")
    note = (
        "Bytes of distinct storages, in the layouts of the table of times. An operation that saves its input keeps "
        "alive what its caller may have let go; in a network that is another operation's output."
    )
    return Table("Bytes saved for backward, by operation", columns, lines, note)


def _bytes(saved) -> tuple[int | None, int | None]:
    return (None, None) if saved is None else (saved.own, saved.own + saved.given)


def _ours(rows: Iterable[Row], subject: str) -> Row | None:
    return next((row for row in rows if row.subject == subject and row.side == "ours" and row.better), None)


def _native(row: MemoryRow, subject: str) -> bool:
    return row.subject == subject and row.side == "native"


def _is(row: Row, kind: str, allocator: str, contender: str) -> bool:
    return (row.kind, row.allocator, row.contender) == (kind, allocator, contender)


def _layout(row: Row) -> str:
    return row.contender.partition(", ")[2] or "only one"


def _range(values: list[float]) -> str:
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low} to {high}"


def _spread(spread: Spread) -> str:
    return f"{spread.median:.2f} ({spread.low:.2f}–{spread.high:.2f})"


def _ms(spread: Spread) -> float:
    return float(f"{1000 * spread.median:.3g}")


def _mb(size: int | None) -> float | None:
    return None if size is None else float(f"{size / 1e6:.3g}")


def _over(ours: int | None, native: int | None) -> float | None:
    return None if ours is None or not native else round(ours / native, 2)


def _least(values: Iterable[int | None]) -> int | None:
    return min((value for value in values if value is not None), default=None)


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"
