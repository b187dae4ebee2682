"""Plots of a comparison of trainings. Text and background colours follow rcParams, for light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import mean, median, stdev
from typing import TYPE_CHECKING

import numpy as np

from compare.figures import make_figure
from compare.training.result import DEFAULT_SUBGRADIENT, NATIVE, NUDGED, OURS, TrainingComparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED, GREY = "#3b82c4", "#e08214", "#4a9e5c", "#d6604d", "#888888"
COLOURS = {OURS: BLUE, NATIVE: ORANGE, NUDGED: GREY}
MAX_DISAGREEMENTS = 40  # images that are shown
MIN_DIFFERENCE = 1e-18  # below any difference of float64 losses; stands for 0 on a logarithmic axis


def losses(result: TrainingComparison) -> Figure:
    """Losses of ours and native for the first seed, and the differences of losses for every seed."""
    figure = make_figure(7, 5.2)
    upper, lower = figure.subplots(2, 1, sharex=True)
    seeds = result.complete_seeds
    width = max(1, result.settings.steps // 150)
    for name, style in ((OURS, {"linewidth": 3.5, "alpha": 0.55}), (NATIVE, {"linewidth": 1.1})):
        values = result.run(name, seeds[0]).losses
        upper.plot(*_binned(values, width, mean), color=COLOURS[name], label=name, **style)
    upper.set(yscale="log", ylabel="loss", title=f"loss, seed {seeds[0]}" + (f", mean of {width}" * (width > 1)))
    upper.legend(frameon=False)
    for other, linewidth, label in (
        (NUDGED, 3.5, "native and native nudged by one ulp"),
        (OURS, 1, "ours and native"),
    ):
        for n, seed in enumerate(seeds):
            pairs = zip(result.run(NATIVE, seed).losses, result.run(other, seed).losses, strict=True)
            differences = [max(abs(a - b), MIN_DIFFERENCE) for a, b in pairs]
            steps, values = _binned(differences, width, median)
            shown = [value if value > MIN_DIFFERENCE else math.nan for value in values]
            style = {"linewidth": linewidth, "alpha": 0.6, "label": label if n == 0 else None}
            lower.plot(steps, shown, ".-", color=COLOURS[other], markersize=3, **style)
    lower.axhline(result.rounding, color=RED, linewidth=1, linestyle="--", label="rounding of a loss of 1")
    lower.set(yscale="log", xlabel="step", ylabel="|difference|")
    lower.set_title("difference of losses, each seed" + (f", median of {width}" * (width > 1)))
    lower.legend(frameon=False)
    return figure


def accuracies(result: TrainingComparison) -> Figure:
    """Test accuracy after each epoch: mean of the seeds, with bars of one standard deviation."""
    figure = make_figure(7, 3.5)
    axes = figure.subplots()
    seeds = result.complete_seeds
    for shift, name in ((-0.1, OURS), (0, NATIVE), (0.1, NUDGED)):
        by_epoch = list(zip(*(result.run(name, seed).accuracies for seed in seeds), strict=True))
        positions = [epoch + shift for epoch in range(1, len(by_epoch) + 1)]
        deviations = [stdev(values) if len(values) > 1 else 0 for values in by_epoch]
        style = {"color": COLOURS[name], "capsize": 4, "label": name}
        axes.errorbar(positions, [mean(values) for values in by_epoch], deviations, fmt="o-", **style)
        for position, values in zip(positions, by_epoch, strict=True):
            axes.plot([position] * len(values), values, "_", color=COLOURS[name], markersize=9, alpha=0.7)
    axes.set(xlabel="epoch", ylabel="test accuracy, %", xticks=range(1, result.settings.epochs + 1))
    axes.margins(x=0.15)
    axes.legend(frameon=False, loc="lower right")
    return figure


def subgradients(result: TrainingComparison) -> Figure:
    """Last test accuracy by the derivative of ReLU at 0: a point for each seed, a line for the mean."""
    figure = make_figure(7, 3)
    axes = figure.subplots()
    seeds = result.complete_seeds
    choices = sorted({DEFAULT_SUBGRADIENT, *result.settings.subgradients})
    trained = {(run.network, run.subgradient) for run in result.runs}
    for n, subgradient in enumerate(choices):
        for shift, name, marker in ((-0.12, OURS, "o"), (0.12, NATIVE, "s")):
            if (name, subgradient) in trained:
                position = n + shift
                values = [result.run(name, seed, subgradient).accuracies[-1] for seed in seeds]
                label = name if subgradient == DEFAULT_SUBGRADIENT else None
                style = {"color": COLOURS[name], "alpha": 0.8, "label": label}
                axes.plot([position] * len(values), values, marker, **style)
                axes.hlines(mean(values), position - 0.09, position + 0.09, color=COLOURS[name])
    axes.set(xlabel="derivative of ReLU at 0", ylabel="test accuracy, %", xlim=(-0.5, len(choices) - 0.5))
    axes.set_xticks(range(len(choices)), [f"{subgradient:g}" for subgradient in choices])
    axes.legend(frameon=False)
    return figure


def disagreements(result: TrainingComparison) -> Figure:
    """First test images that ours and native classify differently, each with "label: ours / native" above it."""
    images = [image for seed in result.complete_seeds for image in result.disagreements(seed)][:MAX_DISAGREEMENTS]
    columns = 8
    rows = max(1, math.ceil(len(images) / columns))
    figure = make_figure(7, 1.15 * rows)
    names = [name.split(" - ")[0] for name in result.dataset.classes]
    for n, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.axis("off")
        if n < len(images):
            image = images[n]
            axes.imshow(result.dataset.test.images[image.index, 0].cpu().numpy(), cmap="gray_r")
            title = f"{names[image.label]}: {names[image.ours]} / {names[image.native]}"
            axes.set_title(title, fontsize=8, pad=2)
    return figure


def kernels(result: TrainingComparison) -> Figure:
    """Kernels of the first convolution of ours and of native, and their difference on a colour scale of its own."""
    figure = make_figure(7, 3)
    seed = result.complete_seeds[0]
    ours, native = (result.run(name, seed).parameters["conv0.weight"][:, 0].numpy() for name in (OURS, NATIVE))
    scale = max(abs(ours).max(), abs(native).max())
    left, middle, right = figure.subplots(1, 3)
    _show_kernels(figure, left, ours, scale, OURS)
    _show_kernels(figure, middle, native, scale, NATIVE)
    _show_kernels(figure, right, ours - native, max(abs(ours - native).max(), 1e-300), "difference")
    return figure


def _show_kernels(figure: Figure, axes: Axes, kernels: np.ndarray, scale: float, title: str) -> None:
    """Show all kernels as one image with gaps, on a colour scale from −scale to scale."""
    count, height, width = kernels.shape
    per_row = math.ceil(math.sqrt(count))
    image = np.full((math.ceil(count / per_row) * (height + 1) - 1, per_row * (width + 1) - 1), math.nan)
    for n, kernel in enumerate(kernels):
        row, column = divmod(n, per_row)
        image[row * (height + 1) :, column * (width + 1) :][:height, :width] = kernel
    shown = axes.imshow(image, cmap="RdBu_r", vmin=-scale, vmax=scale)
    axes.axis("off")
    axes.set_title(title)
    bar = figure.colorbar(shown, ax=axes, orientation="horizontal", shrink=0.9, ticks=[-scale, 0, scale])
    bar.ax.set_xticklabels([f"{-scale:.2g}", "0", f"{scale:.2g}"], fontsize=8)


def _binned(
    values: Sequence[float], width: int, average: Callable[[Sequence[float]], float]
) -> tuple[list[float], list[float]]:
    """Middle step and ``average``, mean or median, of every ``width`` values."""
    starts = range(0, len(values), width)
    return [1 + n + (width - 1) / 2 for n in starts], [average(values[n : n + width]) for n in starts]
