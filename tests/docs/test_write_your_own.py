"""Promise: docs/write-your-own.md shows what its code really prints."""

from __future__ import annotations

import re

from scripts.write_your_own_page import PAGE, TEMPLATE, filled


def essence(page: str) -> list[str]:
    """The page without numbers that may differ from processor to processor: all but whole ones, and one line."""
    lines = [line for line in page.splitlines() if not line.startswith("  closest to its tolerance")]
    return [re.sub(r"-?\d+\.\d+(e-?\d+)?", "#", line) for line in lines]


def test_the_page_is_what_its_blocks_print():
    assert essence(PAGE.read_text()) == essence(filled(TEMPLATE.read_text()))


def test_every_mistake_on_the_page_is_caught():
    text = PAGE.read_text()
    assert text.count("comparisons are wrong") == 4
    for kind in ("missing term", "unknown", "only in one layout", "few elements"):
        assert f"[{kind}]" in text
    assert "gradcheck: True" in text
