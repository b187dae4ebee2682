"""What the speed comparison finds: one row for each contender on each subject, and how turns become rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from compare.speed.memory import Peak, Saved
from compare.speed.networks import COMPILED, NATIVE
from compare.speed.turns import Spread, fastest, ratio

WHOLE = "step"
Side = Literal["ours", "native"]


@dataclass(frozen=True)
class Row:
    """One contender on one subject.

    ``seconds`` and ``ratios`` are by phase, and "step" is all phases together. A ratio is to ``against``, the native
    contender that is fastest of those that are not compiled; ``better`` is false for the slower layout of a side.
    ``faults``: page faults a step, the median.
    """

    kind: Literal["operation", "network"]
    subject: str
    channels: tuple[int, ...]
    batch: int
    allocator: Literal["tuned", "as shipped"]
    contender: str
    side: Side
    better: bool
    against: str
    seconds: Mapping[str, Spread]
    ratios: Mapping[str, Spread]
    faults: float | None

    @property
    def images_per_second(self) -> float:
        return self.batch / self.seconds[WHOLE].median


@dataclass(frozen=True)
class MemoryRow:
    """``saved`` for backward; ``peak`` is of a process of its own. None: not measured, or nothing to measure."""

    kind: Literal["operation", "network"]
    subject: str
    contender: str
    side: Side
    saved: Saved | None = None
    peak: Peak | None = None


@dataclass(frozen=True)
class Wrong:
    """Not timed, and why."""

    subject: str
    contender: str
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class SpeedComparison:
    """``load``: the load average of one minute before and after, None where the system has none. ``missing``: what
    was not measured, and why. ``compiling``: seconds from nothing to the second step of the compiled network."""

    device: str
    threads: int
    rounds: int
    seconds_per_measurement: float
    load: tuple[float, float] | None
    allocator: str
    tuned: bool
    kernels: str
    rows: tuple[Row, ...]
    memory: tuple[MemoryRow, ...]
    wrong: tuple[Wrong, ...]
    missing: tuple[tuple[str, str], ...]
    compiling: Mapping[str, float]


def rows_of(
    about: Mapping[str, Any],
    sides: Mapping[str, Side],
    phases: Mapping[str, Sequence[str]],
    results: Mapping[str, Sequence[Mapping[str, Any]]],
) -> list[Row]:
    """From the turns of each contender to its row. Without a native one that is right there is nothing to compare."""
    times = {label: _by_phase(phases[label], turns) for label, turns in results.items()}
    plain = [label for label, side in sides.items() if side == "native" and label not in COMPILED.values()]
    if not plain:
        return []
    against = fastest({label: times[label][WHOLE] for label in plain})
    rows = []
    for label, side in sides.items():
        rivals = plain if side == "native" else _layouts_of(label, sides)
        faults = [turn["faults"] for turn in results[label]]
        rows.append(
            Row(
                **about,
                contender=label,
                side=side,
                better=label not in rivals or label == fastest({one: times[one][WHOLE] for one in rivals}),
                against=against,
                seconds={phase: Spread.of(values) for phase, values in times[label].items()},
                ratios={
                    phase: ratio(values, times[against][phase])
                    for phase, values in times[label].items()
                    if phase in times[against]
                },
                faults=None if None in faults else Spread.of(faults).median,
            )
        )
    return rows


def _layouts_of(label: str, sides: Mapping[str, Side]) -> list[str]:
    """The labels that differ from ``label`` by the layout alone, and itself."""
    layouts = tuple(NATIVE)
    if not label.endswith(layouts):
        return [label]
    return [one for one, side in sides.items() if side == sides[label] and one.endswith(layouts)]


def _by_phase(phases: Sequence[str], turns: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    by_phase = {phase: [turn["seconds"][n] for turn in turns] for n, phase in enumerate(phases)}
    return by_phase | {WHOLE: [sum(turn["seconds"]) for turn in turns]}
