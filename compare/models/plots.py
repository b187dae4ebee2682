"""Plot of gradient errors by depth. Text and background colours follow rcParams, for light and dark pages."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from compare.figures import make_figure
from compare.gradients.section import NATIVE_COLOUR, OURS_COLOUR
from compare.models.comparison import ModelComparison

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {"ours": OURS_COLOUR, "native": NATIVE_COLOUR}
MAX_TICK_LABELS = 32  # of more parameters, every second or third is named


def error_by_depth(result: ModelComparison) -> Figure:
    """Plot both errors of each parameter's gradient: ours as a broad line, native's as a thin line over it."""
    figure = make_figure(9, 5)
    axes = figure.subplots()
    names = [name for name in result.parameters if result.median_error("ours", "by_parameter", name) is not None]
    lines = (("by_parameter", ":", "with flips"), ("rounding_by_parameter", "-", "rounding only"))
    for kind, dashes, label in lines:
        for side, width, alpha in (("ours", 3.5, 0.55), ("native", 1.2, 1.0)):
            errors = [result.median_error(side, kind, name) or math.nan for name in names]  # 0 has no logarithm
            style = {"color": COLOURS[side], "linewidth": width, "alpha": alpha, "linestyle": dashes}
            axes.plot(errors, marker=".", markersize=4, label=f"{side}, {label}", **style)
    every = math.ceil(len(names) / MAX_TICK_LABELS)
    axes.set_xticks(range(0, len(names), every), names[::every], rotation=90, fontsize=8)
    axes.set(yscale="log", ylabel="relative error of the gradient", xlabel="parameter, from input to output")
    axes.grid(axis="y", alpha=0.25)
    axes.legend(frameon=False)
    return figure
