"""Run the cells of examples/tour.ipynb in this process and store their outputs in it.

python scripts/tour_notebook.py            # writes the outputs into the notebook
python scripts/tour_notebook.py --check    # writes nothing; exit code 1 if a stored output differs

An output is what a cell prints, and a picture for each figure that is open at its end, as in Jupyter. No Jupyter is
needed, only the extra "report": the cells use nothing that only Jupyter has.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("agg")  # before pyplot: no window opens
import matplotlib.pyplot as plt

NOTEBOOK = Path(__file__).parents[1] / "examples" / "tour.ipynb"
MAX_PICTURE_DIFFERENCE = 0.02  # mean over the pixels, of 0 to 1: other fonts change few pixels, other data many

Cell = dict[str, Any]


def run_cells(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Run the code cells in order, in one namespace. Return the outputs of each, in the notebook's format."""
    names: dict[str, object] = {"__name__": "__main__"}
    outputs = []
    with plt.rc_context():
        for number, cell in enumerate(code_cells(cells), start=1):
            plt.close("all")
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile("".join(cell["source"]), f"{NOTEBOOK.name}, code cell {number}", "exec"), names)
            text = printed.getvalue().splitlines(keepends=True)
            streams = [{"name": "stdout", "output_type": "stream", "text": text}] if text else []
            outputs.append(streams + [picture(number) for number in plt.get_fignums()])
        plt.close("all")
    return outputs


def code_cells(cells: Sequence[Cell]) -> list[Cell]:
    return [cell for cell in cells if cell["cell_type"] == "code"]


def picture(figure_number: int) -> Cell:
    """An open figure as the output of a cell."""
    png = io.BytesIO()
    plt.figure(figure_number).savefig(png, format="png", dpi=80)
    data = {"image/png": base64.b64encode(png.getvalue()).decode() + "\n", "text/plain": ["<Figure>"]}
    return {"data": data, "metadata": {}, "output_type": "display_data"}


def differences(stored: Sequence[Cell], run: Sequence[Cell]) -> list[str]:
    """Each way in which the outputs of one cell differ: other text, another number of pictures, other pictures."""
    wrong = []
    texts = ["".join(line for output in outputs for line in output.get("text", [])) for outputs in (stored, run)]
    if texts[0] != texts[1]:
        wrong.append(f"it prints\n{texts[1]}and the notebook has\n{texts[0]}")
    old, new = ([output["data"]["image/png"] for output in outputs if "data" in output] for outputs in (stored, run))
    if len(old) != len(new):
        wrong.append(f"it draws {len(new)} pictures and the notebook has {len(old)}")
    for old_png, new_png in zip(old, new, strict=False):
        if picture_difference(old_png, new_png) > MAX_PICTURE_DIFFERENCE:
            wrong.append("it draws another picture than the notebook has")
    return wrong


def picture_difference(old_png: str, new_png: str) -> float:
    """The mean difference of two pictures, from 0 to 1; infinite if their sizes differ."""
    old, new = (plt.imread(io.BytesIO(base64.b64decode(png))) for png in (old_png, new_png))
    return float(np.abs(old - new).mean()) if old.shape == new.shape else np.inf


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if an output differs")
    options = parser.parse_args(arguments)
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cells = code_cells(notebook["cells"])
    outputs = run_cells(notebook["cells"])
    wrong = [
        f"code cell {number}: {difference}"
        for number, (cell, run) in enumerate(zip(cells, outputs, strict=True), start=1)
        for difference in differences(cell["outputs"], run)
    ]
    if options.check:
        print("\n".join(wrong) or f"{NOTEBOOK.name}: the outputs are those of its cells", file=sys.stderr)
        return int(bool(wrong))
    for number, (cell, run) in enumerate(zip(cells, outputs, strict=True), start=1):
        cell.update(outputs=run, execution_count=number)
    NOTEBOOK.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
