"""Promise: reports contain everything, escape all markup, and load nothing from outside."""

from __future__ import annotations

import base64
import io
import itertools
import json
import math
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from markdown_it import MarkdownIt
from matplotlib.figure import Figure
from PIL import Image

from compare import equations, report, run_info
from compare.report.markdown_to_html import markdown_to_html
from compare.report.pictures import THEMES, render
from compare.report.strict_json import as_json
from compare.report.tables import format_cell, format_table
from compare.sections import MarkdownPage, Picture, Section, Table

HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)>"


# ------------------------------------------------------------------------------------------------ example sections


def loss_curves() -> Figure:
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    rng = np.random.default_rng(0)
    steps = np.arange(2800)
    for shift, colour, label in ((0, "#3b82c4", "ours"), (0.02, "#e08214", "native")):
        noise = rng.normal(0, 0.08, len(steps))
        axes.plot(steps, 2.3 * np.exp(-steps / 400) + 0.05 + shift + abs(noise), color=colour, label=label, lw=0.8)
    axes.set(xlabel="step", ylabel="loss", yscale="log", title="training loss, seed 0")
    axes.legend()
    return figure


def heat_maps() -> Figure:
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    image = None
    for axes, seed in zip(figure.subplots(1, 3), range(3), strict=True):
        error = np.random.default_rng(seed).normal(0, 1, (24, 24))
        image = axes.imshow(error, cmap="RdBu_r", vmin=-3, vmax=3)
        axes.set_title(("ours", "native", "difference")[seed])
    figure.colorbar(image, ax=figure.axes, shrink=0.8)
    return figure


GRADIENTS = Table(
    "Every gradient, against float64",
    ["gradient", "dtype", "layout", "max absolute", "max relative", "ulp", "ours / native", "of tolerance",
     "worst element", "ours", "native", "cosine"],
    [
        [f"{('conv2d', 'max_pool2d', 'dense', 'relu', 'softmax_cross_entropy')[n % 5]}, gradient of "
         f"{('input', 'weight', 'bias')[n % 3]}", ("float64", "float32", "bfloat16", "float16")[n % 4],
         ("contiguous", "channels_last", "transposed", "expanded")[n % 4],
         1.2345e-16 * 10 ** (n % 9), 3.2e-7 / (n + 1),
         0.5 * n, 1 + n / 77, n / 60, f"({n}, 0, {n % 7}, 3)", math.sin(n), math.nan if n == 7 else math.sin(n),
         1.0 if n else 0.0]
        for n in range(60)
    ],
    note="A ratio of 1 means that ours and native have the same error.",
    failed=[7, 31],
)  # fmt: skip

FAILURES = [
    "conv2d, gradient of weight, float32: off by 1.2e-3 at (7, 0, 0, 3), 310 times the tolerance (flipped).",
    f"{HOSTILE}: the case with a hostile name is off by a factor of 2.",
]

RUN_INFO = run_info.RunInfo(
    command=f"python -m compare all --cases '{HOSTILE}'",
    utc="2031-02-03 04:05:06 UTC",
    commit="0123456789abcdef0123456789abcdef01234567",
    versions={"python": "3.12.1", "torch": "2.14.1"},
    processor="AMD EPYC, AVX512",
    cores=2,
    device="cpu",
    threads=2,
    allocator="glibc 2.36",
    environment={"OMP_NUM_THREADS": "2"},
    seeds=(0, 1, 2),
    dataset="mnist",
    source=f"files in torchvision's layout, {HOSTILE}",
)


def example_sections() -> list[Section]:
    """Three sections: one fails, one passes, one is a Markdown page."""
    curves = Picture("Loss of every step", loss_curves, "Two falling curves that coincide", "2,800 steps.")
    where = Picture("Heat maps of the errors", heat_maps, f"Three heat maps of noise {HOSTILE}")
    all_kinds_of_cells = Table(
        f"All kinds of cells {HOSTILE}",
        ["what", "value", "holds", "spread"],
        [[HOSTILE, 0.0, True, "99.23 ± 0.04 %"], ["a|b *c* _d_", math.inf, False, ""], ["", None, None, "1.02×"]],
    )
    text = f"With {HOSTILE}, 1 * 2 * 3 and a_b_c are shown unchanged."
    markdown_page = MarkdownPage("A page", MARKDOWN, "docs/example.md in the repository")
    data = {"rows": [[1, 0.1, math.nan], [2, -math.inf, None]], "name": HOSTILE, "ok": True, "n": np.float32(0.5)}
    accuracy = f"Accuracy {HOSTILE}"
    return [
        Section("gradients", "Gradients", [text], [GRADIENTS, where], FAILURES, data, 1840),
        Section("training", accuracy, ["All well."], [all_kinds_of_cells, curves], [], {}, 20),
        Section("equations", "The equations", [], [markdown_page], [], {}),
    ]


MARKDOWN = f"""
## How to read it

See [(1)](#equation-1), [elsewhere](https://example.org/page) [bad](javascript:alert(1)) and ![a picture](https://example.org/x.png).

### Equation (1)

$$C_{{ijk}}(\\mathbf{{x}}) = \\sum_{{p,q}} x_{{(s_1 i+p)}} \\frac{{1}}{{2}} \\qquad (1)$$

`conv2d.py`, [line 70](../manualgrad/conv2d.py#L70): [test.py::test_it](../tests/test.py#L181).

| x | y |
| --- | --- |
| 1 | {HOSTILE} |

{HOSTILE}

$$C_{{ijk}}(\\mathbf{{x}}) = \\sum_{{p,q}} x_{{(s_1 i+p)}} \\frac{{1}}{{2}} \\qquad (1)$$
"""


# ----------------------------------------------------------------------------------------------- parsed reports


class Page(HTMLParser):
    """A parsed HTML page: its elements with their attributes, and all of its text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def values(self, *names: str) -> list[str]:
        return [attributes[name] for _, attributes in self.elements for name in names if name in attributes]


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "new" / "folder"
    written = report.write_report(example_sections(), RUN_INFO, folder)
    assert sorted(written) == sorted(path for path in folder.rglob("*") if path.is_file())
    return folder


@pytest.fixture(scope="module")
def source(out) -> str:
    return (out / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(source) -> Page:
    return Page(source)


@pytest.fixture(scope="module")
def markdown(out) -> str:
    return (out / "report.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def rendered(markdown) -> Page:
    """report.md as HTML, by a renderer that keeps every tag."""
    return Page(MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown))


def collapse_spaces(text: str) -> str:
    return re.sub(r"\s+", " ", text)


# ------------------------------------------------------------------------------------- all markup is escaped


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


# ------------------------------------------------------------------------------------------------ pictures


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


# --------------------------------------------------------------------------------------------------- files


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


# --------------------------------------------------------------------------------------------------- run info


def test_the_run_info_of_this_process(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/home/somebody/cache")
    monkeypatch.setenv("LD_PRELOAD", "")
    info = run_info.collect_run_info(
        "python -m compare speed", seeds=range(3), dataset="mnist-sample", source="bundled"
    )
    assert info.seeds == (0, 1, 2) and info.threads == torch.get_num_threads() and info.device == "cpu"
    assert info.versions["torch"] == torch.__version__ and {"python", "numpy", "manualgrad"} <= set(info.versions)
    assert info.environment["OMP_NUM_THREADS"] == "1"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", info.utc)
    assert "somebody" not in str(info) and str(Path.home()) not in str(info)
    rows = dict(info.rows())
    assert rows["data"] == "mnist-sample: bundled" and rows["command"] == "python -m compare speed"
    assert info.cores >= 1 and info.processor and info.allocator


def test_the_run_info_leaves_out_unused_seeds_and_data():
    assert {"seeds", "data"}.isdisjoint(dict(run_info.collect_run_info("python -m compare capabilities").rows()))


def test_the_commit_is_that_of_the_clone_and_notes_changed_files(tmp_path, monkeypatch):
    def git(*arguments: str) -> str:
        author = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        run = subprocess.run(["git", "-C", tmp_path, *author, *arguments], capture_output=True, text=True, check=True)
        return run.stdout.strip()

    monkeypatch.setattr(run_info, "ROOT", tmp_path)
    assert run_info.collect_run_info("").commit is None  # not a repository
    git("init")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-m", "first")
    assert run_info.collect_run_info("").commit == git("rev-parse", "HEAD")
    (tmp_path / "file").write_text("2")
    assert run_info.collect_run_info("").commit == git("rev-parse", "HEAD") + ", with changes"
    inside = tmp_path / "site-packages"
    inside.mkdir()
    monkeypatch.setattr(run_info, "ROOT", inside)
    assert run_info.collect_run_info("").commit is None  # installed inside another repository
