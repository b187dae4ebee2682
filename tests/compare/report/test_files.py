"""Promise: a report replaces its own files and no others, and takes Markdown pages with formulas."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from compare import equations, report
from compare.report.markdown_to_html import markdown_to_html
from compare.sections import MarkdownPage, Picture, Section
from tests.compare.report.example_report import RUN_INFO, Page, example_sections


def test_pictures_of_an_earlier_report_are_removed_and_other_files_are_kept(tmp_path):
    other_files = [tmp_path / "metrics.json", tmp_path / "curves.png", tmp_path / "report-pictures" / "notes.txt"]
    other_files[-1].parent.mkdir()
    for other in other_files:
        other.write_text("kept")
    report.write_report(example_sections()[:2], RUN_INFO, tmp_path)
    written = report.write_report(example_sections()[1:2], RUN_INFO, tmp_path)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {*written, *other_files}
    assert [path.name for path in written if path.suffix == ".png"] == ["training-2.png"]


def test_the_numbers_are_kept_when_a_picture_cannot_be_drawn(tmp_path):
    def broken() -> Figure:
        raise RuntimeError("no such axes")

    with pytest.raises(RuntimeError, match="no such axes"):
        report.write_report([Section("a", "A", [], [Picture("p", broken, "p")], [], {"n": 1})], RUN_INFO, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["sections"]["a"]["data"] == {"n": 1}


def test_the_template_and_the_style_sheet_are_package_data():
    folder = Path(report.__file__).parent
    line = re.search(
        r'^"compare\.report" = (\[.*\])$', (folder.parents[1] / "pyproject.toml").read_text(), re.MULTILINE
    )
    data_files = {path.name for path in folder.iterdir() if path.is_file() and path.suffix != ".py"}
    assert data_files == set(json.loads(line[1]))


# ----------------------------------------------------------------------------------------------- Markdown pages


def test_a_markdown_page_has_its_formulas_headings_and_links(page):
    formulas = [svg for svg in page.all("svg") if svg.get("role") == "img"]
    assert len(formulas) == 2
    assert all(
        svg["aria-label"].startswith(r"C_{ijk}(\mathbf{x})") and svg["fill"] == "currentColor" for svg in formulas
    )
    assert "$$" not in page.text
    glyphs = [use["href"] for use in page.all("use")]
    assert glyphs[: len(glyphs) // 2] == glyphs[len(glyphs) // 2 :]  # the same formula twice
    assert len(set(glyphs)) == len(page.all("path")) - 2  # each glyph once; two fraction bars
    assert {"how-to-read-it", "equation-1"} <= set(page.values("id")) and "#equation-1" in page.values("href")
    assert "line 70: test.py::test_it tests/test.py:181." in page.text
    assert "elsewhere https://example.org/page" in page.text and "[bad](javascript:alert(1))" in page.text
    assert "!a picture https://example.org/x.png" in page.text


def test_a_formula_that_cannot_be_typeset_raises():
    with pytest.raises(ValueError, match="nothing"):
        markdown_to_html(MarkdownPage("page", r"$$\nothing{x}$$", "nowhere"), "glyph")


def test_the_equations_page_is_a_section(tmp_path):
    section = equations.section()
    assert section.data["equations"] == list(range(1, 24))
    report.write_report([section], RUN_INFO, tmp_path)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    ids = page.values("id")
    assert all(f"equation-{n}" in ids for n in range(1, 24)) and "second-derivatives" in ids
    assert all(target.removeprefix("#") in ids for target in page.values("href"))
    formulas = re.findall(r"^\$\$(.*)\$\$$", equations.PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert [svg["aria-label"] for svg in page.all("svg") if svg.get("role") == "img"] == formulas
    assert "$$" not in page.text and "written by scripts" not in page.text and "](" not in page.text
    assert "equation-1" not in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_without_the_repository_the_section_says_that_the_page_is_missing(tmp_path):
    section = equations.section(tmp_path / "equations.md")
    assert section.parts == [] and "not installed" in section.text[0]
    assert "not installed" in report.as_text(section)
