"""Promise: pictures exist in both themes, and tables keep their columns in every format and in the terminal."""

from __future__ import annotations

import base64
import io
import math
import re

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from compare import report
from compare.report.pictures import THEMES, render
from compare.report.tables import format_cell, format_table
from compare.sections import Picture, Section, Table
from tests.compare.report.example_report import GRADIENTS, RUN_INFO, Page, example_sections, heat_maps


def pixels(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB"))


def test_every_picture_has_a_light_and_a_dark_version(page):
    sources, images = page.all("source"), page.all("img")
    assert len(sources) == len(images) == len(page.all("picture")) == 2
    for dark, light in zip(sources, images, strict=True):
        assert dark["media"] == "(prefers-color-scheme: dark)"
        assert (pixels(light["src"])[0, 0] == 0xFF).all()
        assert pixels(dark["srcset"])[0, 0].tolist() == pytest.approx([0x14, 0x17, 0x1C], abs=4)
        assert pixels(light["src"]).shape == pixels(dark["srcset"]).shape


def test_a_picture_is_drawn_in_its_themes_colours_and_rcparams_are_restored():
    text_colours = []

    def note_text_colour() -> Figure:
        text_colours.append(matplotlib.rcParams["text.color"])
        return Figure(figsize=(2, 1))

    before = dict(matplotlib.rcParams)
    rendered = [render(Picture("", note_text_colour, ""), theme) for theme in ("light", "dark")]
    assert text_colours == ["#1c1e21", "#e4e6ea"]
    assert dict(matplotlib.rcParams) == before
    assert [(r.width, r.height) for r in rendered] == [(192, 96)] * 2


def test_the_palette_changes_no_pixel_visibly():
    with matplotlib.rc_context(THEMES["light"]):
        figure = heat_maps()
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=160)
    true_colour = np.asarray(Image.open(buffer).convert("RGB")).astype(int)
    palette = np.asarray(Image.open(io.BytesIO(render(Picture("", heat_maps, ""), "light").png)).convert("RGB"))
    assert abs(true_colour - palette).max() <= 12 and abs(true_colour - palette).mean() < 0.5


# --------------------------------------------------------------------------------------------------- cells


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (0.0, "0"), (-0.0, "0"), (0, "0"), (True, "yes"), (False, "no"), (None, "–"), ("1e-3", "1e-3"),
        (80202, "80,202"), (10**15, "1.00e+15"), (1.23456, "1.235"), (9.99996, "10.00"), (99.2, "99.20"),
        (123456.7, "123,457"), (-0.5, "-0.5000"), (1e-3, "0.001000"), (9.9e-4, "9.90e-04"),
        (1.2345e-16, "1.23e-16"), (1e6, "1.00e+06"), (5e-324, "4.94e-324"),
        (math.nan, "NaN"), (math.inf, "∞"), (-math.inf, "-∞"), (np.float32(0.25), "0.2500"), (np.int64(7), "7"),
    ],
)  # fmt: skip
def test_format_of_a_cell(cell, expected):
    assert format_cell(cell) == expected


@pytest.mark.parametrize(
    ("column", "right"),
    [
        ([1, 2.0, None], True), (["99.23 ± 0.04 %", "", 3], True), (["1.02×", "–", "12.5 ms"], True),
        (["1.2e-16"], True), (["1,234 MiB"], True), (["2-D convolution", 1], False), (["float32"], False),
        ([True, False], False), ([None], False), (["(0, 1, 2)"], False), ([], False),
    ],
)  # fmt: skip
def test_columns_of_numbers_are_aligned_right(column, right):
    assert format_table(Table("", ["column"], [[cell] for cell in column])).right_aligned == [right]


def test_a_row_of_the_wrong_length_raises():
    with pytest.raises(ValueError, match="table 'sums': expected 2 cells in a row, got 1"):
        format_table(Table("sums", ["a", "b"], [[1, 2], [3]]))


def test_an_empty_table_has_its_columns_in_every_format(tmp_path):
    section = Section("empty", "Empty", [], [Table("None", ["first", "second"], [])], [], None)
    report.write_report([section], RUN_INFO, tmp_path)
    for text in (
        (tmp_path / "report.html").read_text(),
        (tmp_path / "report.md").read_text(),
        report.as_text(section),
    ):
        assert "first" in text and "second" in text


# ------------------------------------------------------------------------------------------------ terminal


@pytest.mark.parametrize("width", [80, 100, 120])
def test_lines_fit_the_terminal_and_all_columns_are_shown(width):
    text = report.as_text(example_sections()[0], width)
    assert max(map(len, text.splitlines())) <= width
    headers = re.findall(r"^gradient .*\n(?:.*\n)?-{5,}[- ]*$", text, re.MULTILINE)
    assert sorted(" ".join(headers).replace("-", "").split()) == sorted(
        ["gradient"] * (len(headers) - 1) + " ".join(GRADIENTS.columns).split()
    )


def test_failed_rows_are_shown_beyond_the_terminals_row_limit():
    table = Table("Many", ["row", "value"], [[f"row {n}", n] for n in range(100)], failed=[90])
    text = report.as_text(Section("many", "Many", [], [table], [], None), 100)
    assert "✗ row 90" in text and "row 28" in text and "row 29" not in text
    assert "70 of 100 rows are in the report only." in text


def test_a_large_table_is_folded_in_the_page_and_left_out_of_the_terminal(tmp_path):
    rows = [["row 1", 1], ["row 2", 2]]
    tables = [
        Table(f"Table {n}", ["row", "value"], rows, failed=failed, detail=True) for n, failed in enumerate([[], [1]])
    ]
    section = Section("fine", "Fine", [], tables, [], None)
    report.write_report([section], RUN_INFO, tmp_path)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert ["open" in details for details in page.all("details")] == [False, True]  # a failed row is not hidden
    assert page.text.count("row 2") == (tmp_path / "report.md").read_text(encoding="utf-8").count("row 2") == 2
    text = report.as_text(section)
    assert "In the report only: Table 0; Table 1." in text and "row 1" not in text


def test_pictures_and_markdown_pages_are_named_in_the_terminal():
    assert "In the report only: Heat maps of the errors." in report.as_text(example_sections()[0])
    assert "A page: docs/example.md in the repository, and in report.html." in report.as_text(example_sections()[2])
