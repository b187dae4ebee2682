"""Heat maps of a gradient: ours, the expected one, and their difference."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from compare.figures import make_figure
from compare.gradients.tolerance import max_finite_abs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_LENGTH = 128  # rows and columns that are shown
MAX_SLICES = 16  # slices of an image or kernel stack that are shown


def heat_map(ours: Tensor, oracle: Tensor) -> Figure:
    """Draw three panels, blue below 0 and red above; the first two, "ours" and "expected", share a colour scale.

    Infinities and NaN are blank. The tensors have at least one element.
    """
    panels = {"ours": ours, "expected": oracle, "difference": ours - oracle}
    figure = make_figure(7, 2.9)
    oracle_scale = max_finite_abs(oracle)
    for axes, (name, values) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        sheet = _as_matrix(values)
        sheet = sheet.where(sheet.isfinite(), math.nan)
        scale = max_finite_abs(sheet) if name == "difference" else oracle_scale
        shown = (sheet / scale if scale else sheet).clamp(-1, 1)  # the colours of huge and tiny numbers too
        image = axes.imshow(shown.numpy(), cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest", aspect="equal")
        axes.set(title=name, xticks=[], yticks=[])
        bar = figure.colorbar(image, ax=axes, orientation="horizontal", shrink=0.85, ticks=[-1, 0, 1])
        bar.ax.set_xticklabels([f"{-scale:.1e}", "0", f"{scale:.1e}"], fontsize=7)
    return figure


def _as_matrix(values: Tensor) -> Tensor:
    """Arrange a tensor in two dimensions: its first slices side by side, with blank gaps (NaN) between them."""
    if values.dim() < 3:
        values = values.reshape(1, -1) if values.dim() < 2 else values
        if values.shape[0] == 1 and values.shape[1] > 12:
            width = math.ceil(math.sqrt(values.shape[1]))
            values = torch.nn.functional.pad(values, (0, -values.shape[1] % width), value=math.nan).reshape(-1, width)
        return values[:MAX_LENGTH, :MAX_LENGTH]
    slices = values[..., :MAX_LENGTH, :MAX_LENGTH].flatten(0, -3)[:MAX_SLICES]
    columns = math.ceil(math.sqrt(len(slices)))
    rows = math.ceil(len(slices) / columns)
    height, width = slices.shape[1:]
    sheet = torch.full((rows * (height + 1) - 1, columns * (width + 1) - 1), math.nan, dtype=torch.float64)
    for n, matrix in enumerate(slices):
        top, left = n // columns * (height + 1), n % columns * (width + 1)
        sheet[top : top + height, left : left + width] = matrix
    return sheet
