"""Results of the speed comparison, and the rows of its tables, one for each contender and subject."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from compare.speed.contenders import COMPILED, NATIVE
from compare.speed.interleaving import Spread, fastest, ratios_by_round
from compare.speed.memory import PeakMemory, SavedBytes

STEP = "step"  # all phases together
Side = Literal["ours", "native"]


@dataclass(frozen=True)
class TimingRow:
    """Times of one contender on one subject, an operation or a network.

    Attributes:
        seconds: times by phase; "step" is all phases together.
        ratios: by phase, the time over that of ``baseline`` in the same round.
        is_fastest_layout: false for the slower memory layout of a side.
        baseline: the fastest native contender that is not compiled.
        page_faults: median number of page faults a step; None where the system does not count them.
    """

    kind: Literal["operation", "network"]
    subject: str
    channels: tuple[int, ...]
    batch: int
    allocator: Literal["tuned", "default"]
    contender: str
    side: Side
    is_fastest_layout: bool
    baseline: str
    seconds: Mapping[str, Spread]
    ratios: Mapping[str, Spread]
    page_faults: float | None

    @property
    def images_per_second(self) -> float:
        """Images of a batch over the median time of a step."""
        return self.batch / self.seconds[STEP].median


@dataclass(frozen=True)
class MemoryRow:
    """Memory of one contender on one subject: saved for backward, and the peak in a process of its own.

    None: not measured, or nothing to measure.
    """

    kind: Literal["operation", "network"]
    subject: str
    contender: str
    side: Side
    saved: SavedBytes | None = None
    peak: PeakMemory | None = None


@dataclass(frozen=True)
class WrongResult:
    """A contender that was not timed because its results are wrong, with a sentence for each wrong tensor."""

    subject: str
    contender: str
    mismatches: tuple[str, ...]


@dataclass(frozen=True)
class SpeedComparison:
    """Result of :func:`compare.speed.benchmark.compare_speed`.

    Attributes:
        load_averages: one-minute load average before and after; None where the system has none.
        allocator_settings: how the allocator was tuned.
        is_tuned: false if the allocator cannot be tuned here.
        kernels: which kernels of ours are in use.
        not_measured: what was not measured, and why.
        compile_seconds: time of the first two steps of the compiled network, by network.
    """

    device: str
    threads: int
    rounds: int
    seconds_per_measurement: float
    load_averages: tuple[float, float] | None
    allocator_settings: str
    is_tuned: bool
    kernels: str
    rows: tuple[TimingRow, ...]
    memory: tuple[MemoryRow, ...]
    wrong_results: tuple[WrongResult, ...]
    not_measured: tuple[tuple[str, str], ...]
    compile_seconds: Mapping[str, float]


def make_rows(
    shared_fields: Mapping[str, Any],
    sides: Mapping[str, Side],
    phases: Mapping[str, Sequence[str]],
    measurements: Mapping[str, Sequence[Mapping[str, Any]]],
) -> list[TimingRow]:
    """Make a row of the measurements of each contender; no rows if there is no native contender to compare with."""
    times = {label: _by_phase(phases[label], rounds) for label, rounds in measurements.items()}
    uncompiled = [label for label, side in sides.items() if side == "native" and label not in COMPILED.values()]
    if not uncompiled:
        return []
    baseline = fastest({label: times[label][STEP] for label in uncompiled})
    rows = []
    for label, side in sides.items():
        layouts = uncompiled if side == "native" else _layouts_of(label, sides)
        page_faults = [measurement["page_faults"] for measurement in measurements[label]]
        rows.append(
            TimingRow(
                **shared_fields,
                contender=label,
                side=side,
                is_fastest_layout=label not in layouts or label == fastest({n: times[n][STEP] for n in layouts}),
                baseline=baseline,
                seconds={phase: Spread.of(values) for phase, values in times[label].items()},
                ratios={
                    phase: ratios_by_round(values, times[baseline][phase])
                    for phase, values in times[label].items()
                    if phase in times[baseline]
                },
                page_faults=None if None in page_faults else Spread.of(page_faults).median,
            )
        )
    return rows


def _layouts_of(label: str, sides: Mapping[str, Side]) -> list[str]:
    """Labels that differ from ``label`` only by the memory layout, and ``label`` itself."""
    layouts = tuple(NATIVE)
    if not label.endswith(layouts):
        return [label]
    return [other for other, side in sides.items() if side == sides[label] and other.endswith(layouts)]


def _by_phase(phases: Sequence[str], rounds: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    by_phase = {phase: [measurement["seconds"][n] for measurement in rounds] for n, phase in enumerate(phases)}
    return by_phase | {STEP: [sum(measurement["seconds"]) for measurement in rounds]}
