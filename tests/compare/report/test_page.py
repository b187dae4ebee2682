"""Promise: a report escapes all markup, loads nothing, has every number in every format, and can be read aloud."""

from __future__ import annotations

import itertools
import json
import math
import re
from dataclasses import replace

import pytest
import torch

from compare import report
from compare.report.headline import headline
from compare.report.pictures import THEMES
from compare.report.strict_json import as_json
from compare.report.tables import format_cell
from compare.sections import Section
from tests.compare.report.example_report import (
    FAILURES,
    GRADIENTS,
    HOSTILE,
    RUN_INFO,
    collapse_spaces,
    example_sections,
)


def test_markup_in_names_is_escaped(page):
    assert not page.all("script") and not page.all("link") and not page.all("iframe")
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert len(page.all("img")) == 2
    # command, source, text, failure (2), section title (3), table title (2), cell, Markdown page (2)
    assert page.text.count(HOSTILE) >= 12


def test_markup_in_names_is_escaped_in_markdown(rendered):
    assert not rendered.all("script")
    assert [image["src"] for image in rendered.all("img")] == [
        "report-pictures/gradients-2.png",
        "report-pictures/training-2.png",
    ]
    assert rendered.text.count(HOSTILE) >= 8
    assert not rendered.all("em")
    assert "1 * 2 * 3 and a_b_c are shown unchanged" in rendered.text


def test_the_page_loads_nothing_from_outside(source, page):
    ids = page.values("id")
    assert len(set(ids)) == len(ids)
    for target in page.values("href", "src", "srcset", "action", "data", "poster", "xlink:href"):
        assert target.startswith("data:image/png;base64,") or target.removeprefix("#") in ids, target[:80]
    (style,) = re.findall(r"<style>(.*?)</style>", source, re.DOTALL)
    assert "url(" not in style and "@import" not in style
    (policy,) = [meta["content"] for meta in page.all("meta") if "http-equiv" in meta]
    assert policy.startswith("default-src 'none'; img-src data:") and "script" not in policy


# --------------------------------------------------------------------------------------- everything is in the report


def test_every_cell_is_in_the_page_and_in_markdown(page, rendered):
    for table in (GRADIENTS, example_sections()[1].parts[0]):
        for row in table.rows:
            for cell in row:
                assert format_cell(cell) in page.text
                assert collapse_spaces(format_cell(cell)) in collapse_spaces(rendered.text)
    assert len(rendered.all("tr")) == len(GRADIENTS.rows) + 3 + len(RUN_INFO.rows()) + 3  # one head for each table


@pytest.mark.parametrize("sentence", FAILURES)
def test_failures_are_in_every_format(sentence, page, rendered, out):
    assert page.text.count(sentence) == 2  # in the summary, and in their section
    assert rendered.text.count(sentence) == 2
    assert sentence in json.loads((out / "report.json").read_text(encoding="utf-8"))["failures"]
    assert sentence in collapse_spaces(report.as_text(example_sections()[0]))


def test_failures_are_marked(page, markdown):
    assert "✗ 2 unexplained differences in 1,860 comparisons." in page.text
    assert "**2 unexplained differences in 1,860 comparisons.**" in markdown
    marked = [attributes for attributes in page.all("tr") if attributes.get("class") == "failed"]
    assert len(marked) == len(GRADIENTS.failed) + 1  # the section's row in the summary
    for text in (page.text, markdown, report.as_text(example_sections()[0])):
        assert "✗ dense, gradient of weight" in text and "✗ max_pool2d, gradient of weight" in text


def test_a_report_without_failures_says_so(tmp_path):
    sections = example_sections()[1:]
    report.write_report(sections, RUN_INFO, tmp_path)
    sentence = "No unexplained difference in 20 comparisons."
    for name in ("report.html", "report.md", "report.json"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert sentence in text and "✗" not in text
    assert json.loads((tmp_path / "report.json").read_text())["failures"] == []
    assert "No unexplained difference." in report.as_text(sections[0])
    assert "difference" not in report.as_text(sections[1])  # a Markdown page compares nothing


def test_cases_that_were_not_compared_are_told_before_differences():
    """A run without any result may not begin with "No unexplained difference"."""
    ended = Section("gradients", "Gradients", (), [], [], [], 0, ["crash: ended by signal SIGABRT"])
    assert headline([ended]) == "1 case could not be compared, and nothing else was."
    assert "difference" not in report.as_text(ended)
    others = replace(ended, compared=6)
    assert headline([others]) == "1 case could not be compared; no unexplained difference in the other 6 comparisons."
    assert "1 case could not be compared; no unexplained difference in the others." in report.as_text(others)


def test_the_run_info_is_in_every_format(page, rendered, out):
    for name, value in RUN_INFO.rows():
        for text in (page.text, rendered.text):
            assert name in text and value in text
    stored = json.loads((out / "report.json").read_text(encoding="utf-8"))["stamp"]
    assert stored == json.loads(json.dumps(vars(RUN_INFO)))


def reject_constant(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def test_json_is_strict_and_gives_the_numbers_back(out):
    contents = json.loads((out / "report.json").read_text(encoding="utf-8"), parse_constant=reject_constant)
    assert list(contents["sections"]) == ["gradients", "training", "equations"]
    section = contents["sections"]["gradients"]
    assert section["failures"] == FAILURES and section["compared"] == 1840
    (one, tenth, nan), (two, minus_infinity, none) = section["data"]["rows"]
    assert (one, tenth, two, none) == (1, 0.1, 2, None)
    assert math.isnan(float(nan)) and float(minus_infinity) == -math.inf
    assert section["data"]["name"] == HOSTILE and section["data"]["ok"] is True and section["data"]["n"] == 0.5


def test_a_value_that_json_cannot_represent_is_named_with_its_location():
    section = Section("gradients", "", [], [], [], {"rows": [{"worst": torch.zeros(2)}]})
    with pytest.raises(
        TypeError, match=r"report\['sections'\]\['gradients'\]\['data'\]\['rows'\]\[0\]\['worst'\] is a"
    ):
        as_json([section], RUN_INFO)


def test_the_same_input_gives_the_same_bytes(out, tmp_path):
    for path in report.write_report(example_sections(), RUN_INFO, tmp_path):
        assert path.read_bytes() == (out / path.relative_to(tmp_path)).read_bytes(), path.name


# ------------------------------------------------------------------------------------------ accessibility


def test_the_page_is_accessible_to_screen_readers(page):
    assert page.all("html") == [{"lang": "en"}]
    assert all(image["alt"] and image["width"] and image["height"] for image in page.all("img"))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels)), levels
    assert all(th.get("scope") in ("col", "row") for th in page.all("th")[: 3 + 3 + len(GRADIENTS.rows)])
    boxes = [box for box in page.all("div") if (box.get("class") or "").startswith("box")]
    assert len(boxes) == len(page.all("table")) == 4
    assert all(box["tabindex"] == "0" for box in boxes)


def test_every_section_and_part_is_in_the_table_of_contents(page):
    targets = page.values("href")
    for n, section in enumerate(example_sections()):
        assert f"#section-{section.name}" in targets
        assert all(f"#section-{section.name}-{m}" in targets for m in range(1, len(section.parts) + 1)), n


def contrast(colour_a: str, colour_b: str) -> float:
    """Contrast ratio of two colours, as the Web Content Accessibility Guidelines define it."""

    def luminance(colour: str) -> float:
        channels = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    darker, lighter = sorted((luminance(colour_a), luminance(colour_b)))
    return (lighter + 0.05) / (darker + 0.05)


def test_text_has_enough_contrast(source):
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    for theme, block in zip(("light", "dark"), re.findall(r":root \{(.*?)\}", source, re.DOTALL), strict=True):
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))
        assert (THEMES[theme]["figure.facecolor"], THEMES[theme]["text.color"]) == (colours["paper"], colours["ink"])
        pairs = [("ink", "paper"), ("faint", "paper"), ("link", "paper"), ("bad", "paper"), ("ink", "shade"),
                 ("bad", "bad-shade"), ("link", "bad-shade"), ("good", "good-shade")]  # fmt: skip
        for text, background in pairs:
            assert contrast(colours[text], colours[background]) >= 4.5, (theme, text, background)
