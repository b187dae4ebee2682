"""A report that is written once for these tests: its folder, its page and its Markdown, parsed."""

from __future__ import annotations

from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from compare import report
from tests.compare.report.example_report import RUN_INFO, Page, example_sections


@pytest.fixture(scope="package")
def out(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "new" / "folder"
    written = report.write_report(example_sections(), RUN_INFO, folder)
    assert sorted(written) == sorted(path for path in folder.rglob("*") if path.is_file())
    return folder


@pytest.fixture(scope="package")
def source(out) -> str:
    return (out / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="package")
def page(source) -> Page:
    return Page(source)


@pytest.fixture(scope="package")
def markdown(out) -> str:
    return (out / "report.md").read_text(encoding="utf-8")


@pytest.fixture(scope="package")
def rendered(markdown) -> Page:
    """report.md as HTML, by a renderer that keeps every tag."""
    return Page(MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown))
