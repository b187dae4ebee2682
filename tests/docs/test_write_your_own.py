"""Promise: docs/write-your-own.md shows the real output of its code."""

from __future__ import annotations

import re

import pytest

from scripts.write_your_own_page import PAGE, TEMPLATE, fill_template
from tests.docs.code_blocks import ROOT


def without_processor_dependent_numbers(page: str) -> list[str]:
    """Lines of the page, without decimal numbers, and without the lines on the largest error."""
    lines = [line for line in page.splitlines() if not line.startswith("  largest error:")]
    return [re.sub(r"-?\d+\.\d+(e-?\d+)?", "#", line) for line in lines]


def test_the_page_shows_the_output_of_its_blocks():
    filled = fill_template(TEMPLATE.read_text())
    assert without_processor_dependent_numbers(PAGE.read_text()) == without_processor_dependent_numbers(filled)


def test_every_mistake_on_the_page_is_found():
    text = PAGE.read_text()
    assert text.count("comparisons are wrong") == 5
    for kind in ("missing term", "wrong sum", "only in one layout", "few elements"):
        assert f"[{kind}]" in text
    assert "gradcheck: True" in text


@pytest.mark.parametrize("name", ["README.md", "docs/comparison.md"])
def test_a_report_quoted_on_another_page_is_on_this_one(name):
    reports = re.findall(r"```\n(unit rows: .*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL)
    assert reports
    assert all(f"\n{report}```" in PAGE.read_text(encoding="utf-8") for report in reports)
