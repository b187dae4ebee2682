"""Pictures as PNG files, with the colours of a light page or of a dark one."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import Literal

import matplotlib
from PIL import Image

from compare.sections import Picture

DPI = 160  # a browser shows 96 pixels per inch; the rest keeps pictures sharp on dense displays


def _colours(ink: str, paper: str, line: str) -> dict[str, object]:
    return {
        "figure.facecolor": paper,
        "axes.facecolor": paper,
        "legend.facecolor": paper,
        "legend.edgecolor": line,
        "text.color": ink,
        "axes.labelcolor": ink,
        "axes.titlecolor": ink,
        "axes.edgecolor": ink,
        "xtick.color": ink,
        "ytick.color": ink,
        "grid.color": line,
        "savefig.facecolor": "auto",
        "font.size": 11,
        "axes.titlesize": "medium",
        "figure.titlesize": "medium",
    }


# The colours of --ink, --paper and --line in style.css.
THEMES = {"light": _colours("#1c1e21", "#ffffff", "#d5d9de"), "dark": _colours("#e4e6ea", "#14171c", "#3a414b")}


@dataclass(frozen=True)
class RenderedPicture:
    """A PNG, and the size at which a browser shows it, in CSS pixels."""

    png: bytes
    width: int
    height: int


def render(picture: Picture, theme: Literal["light", "dark"]) -> RenderedPicture:
    """Draw ``picture`` in the theme's colours. A palette of 256 colours makes the file a third of its size."""
    with matplotlib.rc_context(THEMES[theme]):
        figure = picture.draw()
        full = BytesIO()
        figure.savefig(full, format="png", dpi=DPI)
    width, height = figure.get_size_inches() * 96
    image = Image.open(full).convert("RGB")
    image = image.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    small = BytesIO()
    image.save(small, format="png", optimize=True)
    return RenderedPicture(small.getvalue(), round(width), round(height))
