"""Pictures drawn for a white page and for a dark one."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import Literal

import matplotlib
from PIL import Image

from compare.sections import Picture

DPI = 160  # sharp at twice the 96 dots that a browser takes for an inch, or nearly


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


# The same papers and inks as in style.css.
THEMES = {"light": _colours("#1c1e21", "#ffffff", "#d5d9de"), "dark": _colours("#e4e6ea", "#14171c", "#3a414b")}


@dataclass(frozen=True)
class Drawn:
    """A PNG, and its size in a browser's pixels."""

    png: bytes
    width: int
    height: int


def draw(picture: Picture, theme: Literal["light", "dark"]) -> Drawn:
    """``picture`` under the theme's colours. 256 colours, chosen for each, make the file a third."""
    with matplotlib.rc_context(THEMES[theme]):
        figure = picture.draw()
        buffer = BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI)
    width, height = figure.get_size_inches() * 96
    image = Image.open(buffer).convert("RGB")
    image = image.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    small = BytesIO()
    image.save(small, format="png", optimize=True)
    return Drawn(small.getvalue(), round(width), round(height))
