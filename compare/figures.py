"""Empty figures for plots. matplotlib, from the extra ``report``, is imported only when a figure is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def make_figure(width: float, height: float) -> Figure:
    """Return an empty figure of this size in inches, whose layout leaves no text outside."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")
