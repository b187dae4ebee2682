"""Promise: the outputs in examples/tour.ipynb are those of its cells.

The cells run in this process, not in Jupyter: a kernel and its client would be twenty packages more for the extra
"test" and seconds more for each run, and the cells use nothing that only Jupyter has.
"""

from __future__ import annotations

import copy
import json
import re

import pytest
import torch

from scripts import tour_notebook
from scripts.tour_notebook import NOTEBOOK, code_cells, differences

CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]


@pytest.fixture(scope="module")
def outputs():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more would wait for cores that other tests use
    yield tour_notebook.run_cells(CELLS)
    torch.set_num_threads(threads)


def test_every_stored_output_is_what_its_cell_prints_and_draws(outputs):
    cells = code_cells(CELLS)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert [differences(cell["outputs"], run) for cell, run in zip(cells, outputs, strict=True)] == [[]] * len(cells)


def test_other_text_another_picture_and_a_missing_one_are_noticed(outputs):
    with_pictures = next(run for run in outputs if len(run) > 2)  # text and two pictures
    changed = copy.deepcopy(with_pictures)
    changed[0]["text"][0] += "1"
    changed[1]["data"] = changed[2]["data"]
    assert [text.split()[1] for text in differences(changed, with_pictures)] == ["prints", "draws"]
    assert differences(with_pictures[:2], with_pictures) == ["it draws 2 pictures and the notebook has 1"]


def test_every_link_of_the_notebook_leads_to_a_file():
    text = "".join(line for cell in CELLS if cell["cell_type"] == "markdown" for line in cell["source"])
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) > 3 and all((NOTEBOOK.parent / link).exists() for link in links)
