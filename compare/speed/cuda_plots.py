"""Plot of the comparison of speed on CUDA: milliseconds of a step of the network against batch size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from compare.figures import make_figure
from compare.sections import Picture
from compare.speed.cuda_benchmark import CudaRow
from compare.speed.plots import BLUE, GREEN, GREY, ORANGE, RED, set_plain_ticks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLES = ("o-", "s--", "^:")  # one for each mode
COLOURS = (BLUE, GREEN, RED)  # one for each variant of ours


def times(rows: Sequence[CudaRow], batches: Mapping[str, int], title: str) -> Picture:
    """Plot ours by variant and mode, and native by mode in the faster of its memory formats.

    Args:
        batches: number of images by subject.
    """
    lines = _lines(rows, batches)
    modes = list(dict.fromkeys(row.mode for row in rows))
    variants = list(dict.fromkeys(name for name, _ in lines if name != "native"))

    def draw() -> Figure:
        figure = make_figure(7, 5)
        axes = figure.subplots()
        for (name, mode), points in lines.items():
            colour = ORANGE if name == "native" else (*COLOURS, GREY)[min(variants.index(name), len(COLOURS))]
            style = STYLES[modes.index(mode) % len(STYLES)]
            axes.plot(list(points), list(points.values()), style, color=colour, markersize=5, label=f"{name}, {mode}")
        shown = sorted({batch for points in lines.values() for batch in points})
        axes.set(xscale="log", yscale="log", xlabel="batch size", ylabel="training step, ms")
        axes.set_xticks(shown, [str(batch) for batch in shown])
        axes.xaxis.set_ticks([], minor=True)
        set_plain_ticks(axes.yaxis, [value for points in lines.values() for value in points.values()])
        axes.set_title(title, fontsize=10)
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
        return figure

    largest = max(batches[row.subject] for row in rows)
    listed = [f"{name}, {mode} {points[largest]:.3g}" for (name, mode), points in lines.items() if largest in points]
    alt = f"Training step of the network, ms, at batch {largest}: {'; '.join(listed)}."
    caption = "Medians over rounds; native in the faster of its memory formats."
    return Picture(f"Network, time of a step against batch size: {title}", draw, alt, caption)


def _lines(rows: Sequence[CudaRow], batches: Mapping[str, int]) -> dict[tuple[str, str], dict[int, float]]:
    """Milliseconds by batch, for each contender's name and mode."""
    lines: dict[tuple[str, str], dict[int, float]] = {}
    for row in sorted(rows, key=lambda row: batches[row.subject]):
        name = "native" if row.side == "native" else f"{row.side}, {row.layout}"
        points = lines.setdefault((name, row.mode), {})
        batch = batches[row.subject]
        points[batch] = min(1000 * row.seconds, points.get(batch, float("inf")))
    return lines
