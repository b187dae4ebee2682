"""Where a gradient is wrong, or how its rounding errors lie: ours, the right one, and their difference, as images."""

from __future__ import annotations

import math

import torch
from matplotlib.figure import Figure
from torch import Tensor

MOST = 16  # slices of an image or kernel stack that are shown


def heat_map(ours: Tensor, oracle: Tensor) -> Figure:
    """Three panels on which blue is below 0 and red above; ours and the right one share a scale."""
    panels = {"ours": ours, "right": oracle, "difference": ours - oracle}
    figure = Figure(figsize=(7, 2.9), layout="constrained")
    limit = _largest(oracle)
    for axes, (name, values) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        sheet = _sheet(values)
        scale = _largest(sheet) if name == "difference" else limit
        image = axes.imshow(
            sheet.numpy(), cmap="RdBu_r", vmin=-scale or -1, vmax=scale or 1, interpolation="nearest", aspect="equal"
        )
        axes.set(title=name, xticks=[], yticks=[])
        bar = figure.colorbar(image, ax=axes, orientation="horizontal", shrink=0.85, ticks=[-scale, 0, scale])
        bar.ax.set_xticklabels([f"{-scale:.1e}", "0", f"{scale:.1e}"], fontsize=7)
    return figure


def _sheet(values: Tensor) -> Tensor:
    """All of it in two dimensions: the first slices beside one another, with a gap of NaN, which stays blank."""
    if values.dim() < 3:
        values = values.reshape(1, -1) if values.dim() < 2 else values
        if values.shape[0] == 1 and values.shape[1] > 12:
            width = math.ceil(math.sqrt(values.shape[1]))
            values = torch.nn.functional.pad(values, (0, -values.shape[1] % width), value=math.nan).reshape(-1, width)
        return values[:128, :128]
    slices = values.flatten(0, -3)[:MOST]
    columns = math.ceil(math.sqrt(len(slices)))
    rows = math.ceil(len(slices) / columns)
    height, width = slices.shape[1:]
    sheet = torch.full((rows * (height + 1) - 1, columns * (width + 1) - 1), math.nan, dtype=torch.float64)
    for n, one in enumerate(slices):
        top, left = n // columns * (height + 1), n % columns * (width + 1)
        sheet[top : top + height, left : left + width] = one
    return sheet


def _largest(values: Tensor) -> float:
    finite = values[values.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0
