"""Pictures of a comparison of trainings. Text and background are left to rcParams, for light and for dark pages."""

from __future__ import annotations

import math
from statistics import mean, median, stdev

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from compare.training.result import HALF, NATIVE, NUDGED, OURS, TrainingComparison

BLUE, ORANGE, GREEN, RED, GREY = "#3b82c4", "#e08214", "#4a9e5c", "#d6604d", "#888888"
COLOURS = {OURS: BLUE, NATIVE: ORANGE, NUDGED: GREY}
SHOWN = 40  # disputed digits
LEAST_OF_A_GAP = 1e-18  # below any difference of float64, so that 0 has a place on a log axis


def costs(result: TrainingComparison) -> Figure:
    """The costs of both for the first seed, one over the other, and for every seed how far apart they are."""
    figure = Figure(figsize=(7, 5.2), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    seeds = result.complete_seeds
    width = max(1, result.settings.steps // 150)
    for name, style in ((OURS, {"linewidth": 3.5, "alpha": 0.55}), (NATIVE, {"linewidth": 1.1})):
        values = result.run(name, seeds[0]).costs
        upper.plot(*_binned(values, width, mean), color=COLOURS[name], label=name, **style)
    upper.set(yscale="log", ylabel="cost J", title=f"cost, seed {seeds[0]}" + (f", mean of {width}" * (width > 1)))
    upper.legend(frameon=False)
    for other, thick, label in ((NUDGED, 3.5, "native and native nudged by one ulp"), (OURS, 1, "ours and native")):
        for n, seed in enumerate(seeds):
            pairs = zip(result.run(NATIVE, seed).costs, result.run(other, seed).costs, strict=True)
            gaps = [max(abs(a - b), LEAST_OF_A_GAP) for a, b in pairs]
            at, values = _binned(gaps, width, median)
            shown = [value if value > LEAST_OF_A_GAP else math.nan for value in values]
            style = {"linewidth": thick, "alpha": 0.6, "label": label if n == 0 else None}
            lower.plot(at, shown, ".-", color=COLOURS[other], markersize=3, **style)
    lower.axhline(result.rounding, color=RED, linewidth=1, linestyle="--", label="rounding of a cost of 1")
    lower.set(yscale="log", xlabel="step", ylabel="|difference|")
    lower.set_title("difference of costs, each seed" + (f", median of {width}" * (width > 1)))
    lower.legend(frameon=False)
    return figure


def accuracies(result: TrainingComparison) -> Figure:
    """The accuracy on the test images after each epoch: mean of the seeds with bars of one standard deviation."""
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    seeds = result.complete_seeds
    for shift, name in ((-0.1, OURS), (0, NATIVE), (0.1, NUDGED)):
        each = list(zip(*(result.run(name, seed).accuracies for seed in seeds), strict=True))
        at = [epoch + shift for epoch in range(1, len(each) + 1)]
        spread = [stdev(values) if len(values) > 1 else 0 for values in each]
        axes.errorbar(at, [mean(v) for v in each], spread, fmt="o-", color=COLOURS[name], capsize=4, label=name)
        for epoch, values in zip(at, each, strict=True):
            axes.plot([epoch] * len(values), values, "_", color=COLOURS[name], markersize=9, alpha=0.7)
    axes.set(xlabel="epoch", ylabel="test accuracy, %", xticks=range(1, result.settings.epochs + 1))
    axes.margins(x=0.15)
    axes.legend(frameon=False, loc="lower right")
    return figure


def derivatives(result: TrainingComparison) -> Figure:
    """The last test accuracy by the derivative of ReLU at 0, a point for each seed."""
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    seeds = result.complete_seeds
    choices = sorted({HALF, *result.settings.subgradients})
    kinds = {(run.network, run.subgradient) for run in result.runs}
    for at, subgradient in enumerate(choices):
        for shift, name, marker in ((-0.12, OURS, "o"), (0.12, NATIVE, "s")):
            if (name, subgradient) in kinds:
                values = [result.run(name, seed, subgradient).accuracies[-1] for seed in seeds]
                label = name if subgradient == HALF else None
                axes.plot([at + shift] * len(values), values, marker, color=COLOURS[name], alpha=0.8, label=label)
                axes.hlines(mean(values), at + shift - 0.09, at + shift + 0.09, color=COLOURS[name])
    axes.set(xlabel="derivative of ReLU at 0", ylabel="test accuracy, %", xlim=(-0.5, len(choices) - 0.5))
    axes.set_xticks(range(len(choices)), [f"{subgradient:g}" for subgradient in choices])
    axes.legend(frameon=False)
    return figure


def disputed(result: TrainingComparison) -> Figure:
    """The first test images that the two classify differently, each with "true: ours / native" above it."""
    found = [each for seed in result.complete_seeds for each in result.disputed(seed)][:SHOWN]
    columns = 8
    rows = max(1, math.ceil(len(found) / columns))
    figure = Figure(figsize=(7, 1.15 * rows), layout="constrained")
    names = [name.split(" - ")[0] for name in result.dataset.classes]
    for n, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.axis("off")
        if n < len(found):
            one = found[n]
            axes.imshow(result.dataset.test.images[one.index, 0].cpu().numpy(), cmap="gray_r")
            axes.set_title(f"{names[one.label]}: {names[one.ours]} / {names[one.native]}", fontsize=8, pad=2)
    return figure


def kernels(result: TrainingComparison) -> Figure:
    """The first convolution's kernels of both and their difference, which has a scale of its own."""
    figure = Figure(figsize=(7, 3), layout="constrained")
    seed = result.complete_seeds[0]
    ours, native = (result.run(name, seed).parameters["conv0.weight"][:, 0].numpy() for name in (OURS, NATIVE))
    scale = max(abs(ours).max(), abs(native).max())
    left, middle, right = figure.subplots(1, 3)
    _tiles(figure, left, ours, scale, OURS)
    _tiles(figure, middle, native, scale, NATIVE)
    _tiles(figure, right, ours - native, max(abs(ours - native).max(), 1e-300), "difference")
    return figure


def _tiles(figure: Figure, axes: Axes, kernels: np.ndarray, scale: float, title: str) -> None:
    """All kernels as one picture with gaps, on a colour scale from −scale to scale."""
    count, rows, columns = kernels.shape
    across = math.ceil(math.sqrt(count))
    sheet = np.full((math.ceil(count / across) * (rows + 1) - 1, across * (columns + 1) - 1), math.nan)
    for n, kernel in enumerate(kernels):
        i, j = divmod(n, across)
        sheet[i * (rows + 1) :, j * (columns + 1) :][:rows, :columns] = kernel
    image = axes.imshow(sheet, cmap="RdBu_r", vmin=-scale, vmax=scale)
    axes.axis("off")
    axes.set_title(title)
    bar = figure.colorbar(image, ax=axes, orientation="horizontal", shrink=0.9, ticks=[-scale, 0, scale])
    bar.ax.set_xticklabels([f"{-scale:.2g}", "0", f"{scale:.2g}"], fontsize=8)


def _binned(values: list[float] | tuple[float, ...], width: int, of: object) -> tuple[list[float], list[float]]:
    """``of``, mean or median, of every ``width`` values, and the steps in the middle of them."""
    starts = range(0, len(values), width)
    return [1 + n + (width - 1) / 2 for n in starts], [of(values[n : n + width]) for n in starts]
