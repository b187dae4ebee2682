"""Draw docs/first-steps.png: the network of docs/first-steps.md with all its values and gradients.

python scripts/first_steps_figure.py

The numbers are those that the page's own blocks compute, before the step.
"""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

DOCS = Path(__file__).parents[1] / "docs"
PAGE, FIGURE = DOCS / "first-steps.md", DOCS / "first-steps.png"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)

Names = dict[str, np.ndarray]

# Name, title and left edge of each value, with its gradient below it. The unit of length is the side of a cell.
VALUES = [("x", "image x", 0), ("w", "kernel w", 4.2), ("z", "z", 9.2), ("r", "r", 13.4), ("p", "p", 17.8),
          ("logits", "logits", 21.2), ("s", "s", 24.8)]  # fmt: skip
GRADIENTS = ("w", "z", "r", "p", "logits")
STEPS = [(6.4, 9, "convolution (1)", "(3)"), (11.4, 13.2, "ReLU (9)", "(10)"), (15.6, 17.6, "max (4)", "P⁻¹"),
         (19, 21, "dense (6)", "(7)"), (22.4, 24.6, "softmax (11)", "(15)"), (26, 27.6, "cost (14)", "")]  # fmt: skip
UPPER, LOWER = 5.4, 1.2  # heights of the rows


def values_of_the_page() -> Names:
    """Every name that the page's blocks define up to the heading "Is it right?"."""
    names: Names = {}
    with contextlib.redirect_stdout(io.StringIO()):
        for code in BLOCK.findall(PAGE.read_text(encoding="utf-8").partition("## Is it right?")[0]):
            exec(compile(code, str(PAGE), "exec"), names)
    names["logits"] = names["p"] * names["v"] + names["c"]
    return names


def draw_grid(axes: Axes, values: np.ndarray, left: float, middle: float, title: str, framed: int | None) -> None:
    """A grid of cells with their numbers, around the height ``middle``; ``framed`` is the flat index of a cell."""
    values = np.atleast_1d(values)
    cells = values.reshape(-1, 1) if values.ndim == 1 else values
    rows, columns = cells.shape
    norm, colours = TwoSlopeNorm(0, -3, 3), plt.get_cmap("RdBu_r")
    for index, (row, column) in enumerate(np.ndindex(rows, columns)):
        corner = left + column, middle + rows / 2 - 1 - row
        colour = colours(0.5 + 0.7 * (norm(cells[row, column]) - 0.5))
        axes.add_patch(Rectangle(corner, 1, 1, facecolor=colour, edgecolor="0.35", linewidth=0.8))
        text = f"{cells[row, column]:.4g}".replace("-", "−")
        axes.text(corner[0] + 0.5, corner[1] + 0.5, text, ha="center", va="center", fontsize=9)
        if index == framed:
            axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="black", linewidth=2.6, zorder=3))
    axes.text(left + columns / 2, middle + rows / 2 + 0.25, title, ha="center", va="bottom", fontsize=12)


def draw_arrow(axes: Axes, start: float, end: float, height: float, label: str) -> None:
    axes.annotate("", (end, height), (start, height), arrowprops={"arrowstyle": "-|>", "color": "0.2", "lw": 1.4})
    axes.text(
        (start + end) / 2, height + 0.12, label.replace(" ", "\n"), ha="center", va="bottom", fontsize=9, color="0.2"
    )


def draw_figure(names: Names) -> Figure:
    """Figure of the page's network: values in the upper row, gradients in the lower one."""
    figure, axes = plt.subplots(figsize=(14, 4.4))
    maximum = int(names["r"].argmax())
    for name, title, left in VALUES:
        framed = maximum if name in ("z", "r") else None
        draw_grid(axes, names[name], left, UPPER, title, framed)
        if name in GRADIENTS:
            draw_grid(axes, names[f"g_{name}"], left, LOWER, f"g of {name}", framed)
    for left, right, forward, backward in STEPS:
        draw_arrow(axes, left, right, UPPER, forward)
        if backward:
            draw_arrow(axes, right, left, LOWER, backward)
    axes.text(3.6, UPPER, "∗", ha="center", va="center", fontsize=16)
    axes.text(27.8, UPPER, f"J = {names['cost']:.4g}", ha="left", va="center", fontsize=12)
    axes.text(24.8, LOWER, "from J and the label", ha="left", va="center", fontsize=12)
    axes.text(0, UPPER + 2.8, "forward: values", ha="left", va="center", fontsize=12, weight="bold")
    axes.text(0, LOWER, "backward:\ngradients", ha="left", va="center", fontsize=12, weight="bold")
    axes.set(xlim=(-0.2, 30.8), ylim=(0, 8.6), aspect="equal")
    axes.axis("off")
    return figure


def main() -> None:
    draw_figure(values_of_the_page()).savefig(FIGURE, dpi=100, bbox_inches="tight", facecolor="white")
    print(f"{FIGURE.relative_to(DOCS.parent)} is written")


if __name__ == "__main__":
    main()
