"""The picture of error by depth. Text and background are left to rcParams, for light and for dark pages."""

from __future__ import annotations

import math

from matplotlib.figure import Figure

from compare.gradients_section import NATIVE, OURS
from compare.models.result import ModelComparison

COLOURS = {"ours": OURS, "native": NATIVE}
NAMED = 32  # parameters under the axis; of more, every second or third


def error_by_depth(result: ModelComparison) -> Figure:
    """Both errors of each parameter's gradient, ours a broad line and native's a thin one over it."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    names = [name for name in result.order if result.error("ours", "errors", name) is not None]
    for what, dashes, label in (("errors", ":", "flips and all"), ("roundings", "-", "rounding alone")):
        for who, width, alpha in (("ours", 3.5, 0.55), ("native", 1.2, 1.0)):
            values = [result.error(who, what, name) or math.nan for name in names]  # an exact 0 has no logarithm
            style = {"color": COLOURS[who], "linewidth": width, "alpha": alpha, "linestyle": dashes}
            axes.plot(values, marker=".", markersize=4, label=f"{who}, {label}", **style)
    every = math.ceil(len(names) / NAMED)
    axes.set_xticks(range(0, len(names), every), names[::every], rotation=90, fontsize=8)
    axes.set(yscale="log", ylabel="error of the gradient, over its norm", xlabel="parameter, from input to output")
    axes.grid(axis="y", alpha=0.25)
    axes.legend(frameon=False)
    return figure
