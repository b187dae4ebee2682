"""Plots of the speed comparison: ratios by operation; time and images per second against batch size."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from compare.figures import make_figure
from compare.sections import Picture
from compare.speed.contenders import COMPILED, FORMULAS, OURS, RECURSION
from compare.speed.results import STEP, TimingRow

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED, GREY = "#3b82c4", "#e08214", "#4a9e5c", "#d6604d", "#888888"
PHASES = (("forward", "o", BLUE), ("backward", "s", ORANGE), (STEP, "D", GREEN))
PHASE_LABELS = {STEP: "forward + backward"}


def ratios(rows: Sequence[TimingRow]) -> Picture:
    """Plot ours over native by operation: median and quartiles on a logarithmic scale, with a line at 1."""
    shown = [row for row in rows if row.side == "ours" and row.is_fastest_layout]

    def draw() -> Figure:
        figure = make_figure(7, 1.4 + 0.42 * len(shown))
        axes = figure.subplots()
        axes.axvline(1, color=GREY, linewidth=1)
        for n, (phase, marker, colour) in enumerate(PHASES):
            spreads = [row.ratios[phase] for row in shown]
            axes.errorbar(
                [spread.median for spread in spreads],
                [position + 0.22 * (n - 1) for position in range(len(shown))],
                xerr=[
                    [spread.median - spread.low for spread in spreads],
                    [spread.high - spread.median for spread in spreads],
                ],
                fmt=marker,
                color=colour,
                markersize=4.5,
                linewidth=1.4,
                label=PHASE_LABELS.get(phase, phase),
            )
        axes.set(xscale="log", xlabel="time, ours over native (left of the line, ours is faster)")
        axes.set_yticks(range(len(shown)), [row.subject for row in shown])
        axes.set_ylim(len(shown) - 0.4, -0.6)
        set_plain_ticks(axes.xaxis, [value for row in shown for value in _quartiles(row)])
        figure.legend(loc="outside upper center", ncols=3, frameon=False)
        return figure

    faster = [row.subject for row in shown if row.ratios[STEP].median < 1]
    alt = (
        f"Ratio of our time to native's for {len(shown)} operations; ours is faster, forward and backward together, "
        f"in {len(faster)}{': ' + ', '.join(faster) if faster else ''}."
    )
    return Picture("Operations: ours over native", draw, alt, "Median and quartiles of the ratios by round.")


def times(rows: Sequence[TimingRow]) -> Picture:
    """Plot milliseconds of a step against batch size."""
    return _plot_against_batch(
        rows,
        "Time of a step against batch size",
        "training step, ms",
        lambda row: tuple(1000 * getattr(row.seconds[STEP], name) for name in ("low", "median", "high")),
    )


def throughput(rows: Sequence[TimingRow]) -> Picture:
    """Plot images per second against batch size."""
    return _plot_against_batch(
        rows,
        "Images per second against batch size",
        "images per second",
        lambda row: tuple(row.batch / getattr(row.seconds[STEP], name) for name in ("high", "median", "low")),
    )


def _plot_against_batch(
    rows: Sequence[TimingRow], title: str, label: str, value: Callable[[TimingRow], tuple[float, float, float]]
) -> Picture:
    channels = rows[0].channels
    rows = [row for row in rows if row.channels == channels]
    lines = _lines(rows)

    def draw() -> Figure:
        figure = make_figure(7, 4.2)
        axes = figure.subplots()
        for name, colour, style, points in lines:
            batches = [row.batch for row in points]
            low, middle, high = zip(*(value(row) for row in points), strict=True)
            fill = "none" if style.endswith("--") else colour
            axes.plot(batches, middle, style, color=colour, markersize=5, markerfacecolor=fill, label=name)
            axes.fill_between(batches, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.set(xscale="log", yscale="log", xlabel="batch size", ylabel=label)
        batches = sorted({row.batch for row in rows})
        axes.set_xticks(batches, [str(batch) for batch in batches])
        axes.xaxis.set_ticks([], minor=True)
        set_plain_ticks(axes.yaxis, [number for *_, points in lines for row in points for number in value(row)])
        axes.set_title(f"channels {channels}", fontsize=10)
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
        return figure

    medians = {name: {row.batch: value(row)[1] for row in points} for name, *_, points in lines}
    largest = max(row.batch for row in rows)
    listed = [f"{name} {_number(by_batch[largest])}" for name, by_batch in medians.items() if largest in by_batch]
    alt = f"{label[0].upper()}{label[1:]}, at batch {largest}: {', '.join(listed)}."
    return Picture(title, draw, alt, "Median and quartiles; native in the faster of its memory layouts.")


def _lines(rows: Sequence[TimingRow]) -> list[tuple[str, str, str, list[TimingRow]]]:
    """Name, colour, style and points of each line that has points."""
    native = {row.contender for row in rows if row.side == "native" and row.contender not in COMPILED.values()}
    candidates = (
        ("manualgrad", {OURS}, "tuned", BLUE, "o-"),
        ("manualgrad, delta recursion", {RECURSION}, "tuned", GREEN, "^-"),
        ("manualgrad, formulas only", {FORMULAS}, "tuned", RED, "v-"),
        ("PyTorch", native, "tuned", ORANGE, "s-"),
        ("PyTorch, compiled", set(COMPILED.values()), "tuned", GREY, "x:"),
        ("manualgrad, default allocator", {OURS}, "default", BLUE, "o--"),
        ("PyTorch, default allocator", native, "default", ORANGE, "s--"),
    )
    lines = []
    for name, contenders, allocator, colour, style in candidates:
        points = [
            row
            for row in rows
            if row.contender in contenders and row.allocator == allocator and row.is_fastest_layout
        ]
        if points:
            lines.append((name, colour, style, sorted(points, key=lambda row: row.batch)))
    return lines


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _quartiles(row: TimingRow) -> list[float]:
    return [number for phase, *_ in PHASES for number in (row.ratios[phase].low, row.ratios[phase].high)]


def set_plain_ticks(axis: Axis, values: Sequence[float]) -> None:
    """Set ticks such as 0.5, 1, 2: a scale of less than two decades may contain no power of ten."""
    low, high = min(values), max(values)
    factors = (1, 2, 5) if high / max(low, 1e-12) < 300 else (1,)
    ticks = [factor * 10.0**power for power in range(-6, 8) for factor in factors]
    inside = [tick for tick in ticks if low / 1.3 <= tick <= high * 1.3]
    axis.set_ticks(inside or [statistics.median(values)])
    axis.set_ticks([], minor=True)
    axis.set_major_formatter(lambda number, _: f"{number:,.10g}")
