"""The report of made-up sections: nothing is lost, nothing is obeyed, nothing comes from outside."""

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

from compare import equations_section, report, stamp
from compare.report.cells import cells, words
from compare.report.document import as_html
from compare.report.figures import THEMES, draw
from compare.report.strict_json import as_json
from compare.sections import Document, Picture, Section, Table

HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)>"


# ------------------------------------------------------------------------------------------------ made up


def losses() -> Figure:
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    rng = np.random.default_rng(0)
    steps = np.arange(2800)
    for shift, colour, label in ((0, "#3b82c4", "ours"), (0.02, "#e08214", "native")):
        noise = rng.normal(0, 0.08, len(steps))
        axes.plot(steps, 2.3 * np.exp(-steps / 400) + 0.05 + shift + abs(noise), color=colour, label=label, lw=0.8)
    axes.set(xlabel="step", ylabel="cost J", yscale="log", title="training cost, seed 0")
    axes.legend()
    return figure


def heat() -> Figure:
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
    ["gradient", "dtype", "layout", "max absolute", "max relative", "ulp", "to native's", "of tolerance", "worst at",
     "ours", "native", "cosine"],
    [
        [f"{('conv2d', 'max_pool2d', 'dense', 'relu', 'softmax_cross_entropy')[n % 5]}, gradient of "
         f"{('input', 'weight', 'bias')[n % 3]}", ("float64", "float32", "bfloat16", "float16")[n % 4],
         ("contiguous", "channels_last", "transposed", "expanded")[n % 4],
         1.2345e-16 * 10 ** (n % 9), 3.2e-7 / (n + 1),
         0.5 * n, 1 + n / 77, n / 60, f"({n}, 0, {n % 7}, 3)", math.sin(n), math.nan if n == 7 else math.sin(n),
         1.0 if n else 0.0]
        for n in range(60)
    ],
    note="Ratio 1 means that ours rounds as native does.",
    failed=[7, 31],
)  # fmt: skip

FAILURES = [
    "conv2d, gradient of weight, float32: off by 1.2e-3 at (7, 0, 0, 3), 310 times the tolerance; it looks flipped.",
    f"{HOSTILE}: the case with an odd name is off by a factor of 2.",
]

MAKING = stamp.Stamp(
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


def made_up() -> list[Section]:
    """Three sections: one fails, one has nothing to say against it, one is a document."""
    curves = Picture("The cost of every step", losses, "Two falling curves that lie on each other", "2,800 steps.")
    where = Picture("Where it is wrong", heat, f"Three heat maps of noise {HOSTILE}")
    cells_of_all_kinds = Table(
        f"All kinds of cells {HOSTILE}",
        ["what", "value", "holds", "spread"],
        [[HOSTILE, 0.0, True, "99.23 ± 0.04 %"], ["a|b *c* _d_", math.inf, False, ""], ["", None, None, "1.02×"]],
    )
    text = f"Beside {HOSTILE}, 1 * 2 * 3 and a_b_c stand as they are."
    document = Document("A document", DOCUMENT, "docs/made_up.md in the repository")
    data = {"rows": [[1, 0.1, math.nan], [2, -math.inf, None]], "name": HOSTILE, "ok": True, "n": np.float32(0.5)}
    accuracy = f"Accuracy for accuracy {HOSTILE}"
    return [
        Section("gradients", "Gradient for gradient", [text], [GRADIENTS, where], FAILURES, data, 1840),
        Section("training", accuracy, ["All well."], [cells_of_all_kinds, curves], [], {}, 20),
        Section("equations", "The equations", [], [document], [], {}),
    ]


DOCUMENT = f"""
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


# ----------------------------------------------------------------------------------------------- read back


class Page(HTMLParser):
    """What a browser would make of a page: its elements with their attributes, and all of its text."""

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
    written = report.write(made_up(), MAKING, folder)
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
    """report.md as a site would show it that obeys every tag."""
    return Page(MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown))


def squeezed(text: str) -> str:
    return re.sub(r"\s+", " ", text)


# ------------------------------------------------------------------------------------- nothing is obeyed


def test_markup_in_names_is_shown_and_not_obeyed(page):
    assert not page.all("script") and not page.all("link") and not page.all("iframe")
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert len(page.all("img")) == 2
    # stamp's command and source; text; failure twice; title thrice; table's title twice; a cell; the document twice
    assert page.text.count(HOSTILE) >= 12


def test_markup_in_names_is_not_obeyed_in_markdown(rendered):
    assert not rendered.all("script")
    assert [image["src"] for image in rendered.all("img")] == [
        "report-pictures/gradients-2.png",
        "report-pictures/training-2.png",
    ]
    assert rendered.text.count(HOSTILE) >= 8
    assert not rendered.all("em")
    assert "1 * 2 * 3 and a_b_c stand as they are" in rendered.text


def test_the_page_asks_for_nothing_from_outside(source, page):
    ids = page.values("id")
    assert len(set(ids)) == len(ids)
    for target in page.values("href", "src", "srcset", "action", "data", "poster", "xlink:href"):
        assert target.startswith("data:image/png;base64,") or target.removeprefix("#") in ids, target[:80]
    (style,) = re.findall(r"<style>(.*?)</style>", source, re.DOTALL)
    assert "url(" not in style and "@import" not in style
    (policy,) = [meta["content"] for meta in page.all("meta") if "http-equiv" in meta]
    assert policy.startswith("default-src 'none'; img-src data:") and "script" not in policy


# --------------------------------------------------------------------------------------- nothing is lost


def test_every_cell_is_in_the_page_and_in_markdown(page, rendered):
    for table in (GRADIENTS, made_up()[1].parts[0]):
        for row in table.rows:
            for cell in row:
                assert words(cell) in page.text
                assert squeezed(words(cell)) in squeezed(rendered.text)
    assert len(rendered.all("tr")) == len(GRADIENTS.rows) + 3 + len(MAKING.rows()) + 3  # one head for each table


@pytest.mark.parametrize("sentence", FAILURES)
def test_failures_are_in_every_format(sentence, page, rendered, out):
    assert page.text.count(sentence) == 2  # in the summary, and in their section
    assert rendered.text.count(sentence) == 2
    assert sentence in json.loads((out / "report.json").read_text(encoding="utf-8"))["failures"]
    assert sentence in squeezed(report.as_text(made_up()[0]))


def test_failures_stand_out(page, markdown):
    assert "✗ 2 unexplained differences in 1,860 comparisons." in page.text
    assert "**2 unexplained differences in 1,860 comparisons.**" in markdown
    marked = [attributes for attributes in page.all("tr") if attributes.get("class") == "failed"]
    assert len(marked) == len(GRADIENTS.failed) + 1  # and the section, in the summary
    for text in (page.text, markdown, report.as_text(made_up()[0])):
        assert "✗ dense, gradient of weight" in text and "✗ max_pool2d, gradient of weight" in text


def test_a_report_without_failures_says_so(tmp_path):
    sections = made_up()[1:]
    report.write(sections, MAKING, tmp_path)
    sentence = "No unexplained difference in 20 comparisons."
    for name in ("report.html", "report.md", "report.json"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert sentence in text and "✗" not in text
    assert json.loads((tmp_path / "report.json").read_text())["failures"] == []
    assert "No unexplained difference." in report.as_text(sections[0])
    assert "difference" not in report.as_text(sections[1])  # a document compares nothing


def test_the_stamp_is_in_every_format(page, rendered, out):
    for what, value in MAKING.rows():
        for text in (page.text, rendered.text):
            assert what in text and value in text
    found = json.loads((out / "report.json").read_text(encoding="utf-8"))["stamp"]
    assert found == json.loads(json.dumps(vars(MAKING)))


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def test_json_is_strict_and_gives_the_numbers_back(out):
    whole = json.loads((out / "report.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert list(whole["sections"]) == ["gradients", "training", "equations"]
    section = whole["sections"]["gradients"]
    assert section["failures"] == FAILURES and section["compared"] == 1840
    (one, tenth, nan), (two, minus, none) = section["data"]["rows"]
    assert (one, tenth, two, none) == (1, 0.1, 2, None)
    assert math.isnan(float(nan)) and float(minus) == -math.inf
    assert section["data"]["name"] == HOSTILE and section["data"]["ok"] is True and section["data"]["n"] == 0.5


def test_what_json_does_not_know_is_named_with_its_place():
    odd = Section("gradients", "", [], [], [], {"rows": [{"worst": torch.zeros(2)}]})
    with pytest.raises(
        TypeError, match=r"report\['sections'\]\['gradients'\]\['data'\]\['rows'\]\[0\]\['worst'\] is a"
    ):
        as_json([odd], MAKING)


def test_the_same_input_gives_the_same_bytes(out, tmp_path):
    for path in report.write(made_up(), MAKING, tmp_path):
        assert path.read_bytes() == (out / path.relative_to(tmp_path)).read_bytes(), path.name


# ------------------------------------------------------------------------------------------ how it is read


def test_the_page_can_be_found_through_without_eyes(page):
    assert page.all("html") == [{"lang": "en"}]
    assert all(image["alt"] and image["width"] and image["height"] for image in page.all("img"))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels)), levels
    assert all(th.get("scope") in ("col", "row") for th in page.all("th")[: 3 + 3 + len(GRADIENTS.rows)])
    boxes = [box for box in page.all("div") if (box.get("class") or "").startswith("box")]
    assert len(boxes) == len(page.all("table")) == 4
    assert all(box["tabindex"] == "0" for box in boxes)


def test_every_section_and_part_is_in_the_contents(page):
    targets = page.values("href")
    for n, section in enumerate(made_up()):
        assert f"#section-{section.name}" in targets
        assert all(f"#section-{section.name}-{m}" in targets for m in range(1, len(section.parts) + 1)), n


def contrast(one: str, other: str) -> float:
    """Of two colours, as the Web Content Accessibility Guidelines define it."""

    def luminance(colour: str) -> float:
        channels = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def test_text_can_be_told_from_its_ground(source):
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    for theme, block in zip(("light", "dark"), re.findall(r":root \{(.*?)\}", source, re.DOTALL), strict=True):
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))
        assert (THEMES[theme]["figure.facecolor"], THEMES[theme]["text.color"]) == (colours["paper"], colours["ink"])
        pairs = [("ink", "paper"), ("faint", "paper"), ("link", "paper"), ("bad", "paper"), ("ink", "shade"),
                 ("bad", "bad-shade"), ("link", "bad-shade"), ("good", "good-shade")]  # fmt: skip
        for one, other in pairs:
            assert contrast(colours[one], colours[other]) >= 4.5, (theme, one, other)


# ------------------------------------------------------------------------------------------------ pictures


def pixels(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB"))


def test_every_picture_is_there_for_light_and_for_dark(page):
    sources, images = page.all("source"), page.all("img")
    assert len(sources) == len(images) == len(page.all("picture")) == 2
    for dark, light in zip(sources, images, strict=True):
        assert dark["media"] == "(prefers-color-scheme: dark)"
        assert (pixels(light["src"])[0, 0] == 0xFF).all()
        assert pixels(dark["srcset"])[0, 0].tolist() == pytest.approx([0x14, 0x17, 0x1C], abs=4)
        assert pixels(light["src"]).shape == pixels(dark["srcset"]).shape


def test_a_picture_is_drawn_under_its_themes_colours_and_they_are_put_back():
    seen = []

    def noting() -> Figure:
        seen.append(matplotlib.rcParams["text.color"])
        return Figure(figsize=(2, 1))

    before = dict(matplotlib.rcParams)
    drawn = [draw(Picture("", noting, ""), theme) for theme in ("light", "dark")]
    assert seen == ["#1c1e21", "#e4e6ea"]
    assert dict(matplotlib.rcParams) == before
    assert [(d.width, d.height) for d in drawn] == [(192, 96)] * 2


def test_few_colours_do_not_change_what_is_seen():
    with matplotlib.rc_context(THEMES["light"]):
        figure = heat()
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=160)
    full = np.asarray(Image.open(buffer).convert("RGB")).astype(int)
    few = np.asarray(Image.open(io.BytesIO(draw(Picture("", heat, ""), "light").png)).convert("RGB"))
    assert abs(full - few).max() <= 12 and abs(full - few).mean() < 0.5


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
def test_a_cell_in_words(cell, expected):
    assert words(cell) == expected


@pytest.mark.parametrize(
    ("column", "right"),
    [
        ([1, 2.0, None], True), (["99.23 ± 0.04 %", "", 3], True), (["1.02×", "–", "12.5 ms"], True),
        (["1.2e-16"], True), (["1,234 MiB"], True), (["2-D convolution", 1], False), (["float32"], False),
        ([True, False], False), ([None], False), (["(0, 1, 2)"], False), ([], False),
    ],
)  # fmt: skip
def test_columns_of_numbers_are_aligned_right(column, right):
    assert cells(Table("", ["column"], [[cell] for cell in column])).right == [right]


def test_a_row_that_does_not_fit_its_columns_is_refused():
    with pytest.raises(ValueError, match="table 'sums': 2 columns, but a row of 1"):
        cells(Table("sums", ["a", "b"], [[1, 2], [3]]))


def test_an_empty_table_has_its_columns_in_every_format(tmp_path):
    section = Section("empty", "Empty", [], [Table("None", ["first", "second"], [])], [], None)
    report.write([section], MAKING, tmp_path)
    for text in (
        (tmp_path / "report.html").read_text(),
        (tmp_path / "report.md").read_text(),
        report.as_text(section),
    ):
        assert "first" in text and "second" in text


# ------------------------------------------------------------------------------------------------ terminal


@pytest.mark.parametrize("width", [80, 100, 120])
def test_the_terminals_width_is_kept_and_all_columns_are_there(width):
    text = report.as_text(made_up()[0], width)
    assert max(map(len, text.splitlines())) <= width
    heads = re.findall(r"^gradient .*\n(?:.*\n)?-{5,}[- ]*$", text, re.MULTILINE)
    assert sorted(" ".join(heads).replace("-", "").split()) == sorted(
        ["gradient"] * (len(heads) - 1) + " ".join(GRADIENTS.columns).split()
    )


def test_rows_that_failed_come_before_the_terminals_limit():
    table = Table("Many", ["row", "value"], [[f"row {n}", n] for n in range(100)], failed=[90])
    text = report.as_text(Section("many", "Many", [], [table], [], None), 100)
    assert "✗ row 90" in text and "row 28" in text and "row 29" not in text
    assert "70 of 100 rows are in the report only." in text


def test_a_detail_is_folded_in_the_page_and_left_out_of_the_terminal(tmp_path):
    rows = [["row 1", 1], ["row 2", 2]]
    tables = [
        Table(f"Table {n}", ["row", "value"], rows, failed=failed, detail=True) for n, failed in enumerate([[], [1]])
    ]
    section = Section("fine", "Fine", [], tables, [], None)
    report.write([section], MAKING, tmp_path)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert ["open" in details for details in page.all("details")] == [False, True]  # what failed is not hidden
    assert page.text.count("row 2") == (tmp_path / "report.md").read_text(encoding="utf-8").count("row 2") == 2
    text = report.as_text(section)
    assert "In the report only: Table 0; Table 1." in text and "row 1" not in text


def test_pictures_and_documents_are_named_in_the_terminal():
    assert "In the report only: Where it is wrong." in report.as_text(made_up()[0])
    assert "A document: docs/made_up.md in the repository, and in report.html." in report.as_text(made_up()[2])


# --------------------------------------------------------------------------------------------------- files


def test_an_earlier_reports_pictures_do_not_stay_and_other_files_do(tmp_path):
    others = [tmp_path / "metrics.json", tmp_path / "curves.png", tmp_path / "report-pictures" / "notes.txt"]
    others[-1].parent.mkdir()
    for other in others:
        other.write_text("somebody's")
    report.write(made_up()[:2], MAKING, tmp_path)
    written = report.write(made_up()[1:2], MAKING, tmp_path)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {*written, *others}
    assert [path.name for path in written if path.suffix == ".png"] == ["training-2.png"]


def test_the_numbers_are_kept_when_a_picture_cannot_be_drawn(tmp_path):
    def broken() -> Figure:
        raise RuntimeError("no such axes")

    with pytest.raises(RuntimeError, match="no such axes"):
        report.write([Section("a", "A", [], [Picture("p", broken, "p")], [], {"n": 1})], MAKING, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["sections"]["a"]["data"] == {"n": 1}


def test_the_template_and_the_style_are_installed_too():
    folder = Path(report.__file__).parent
    line = re.search(
        r'^"compare\.report" = (\[.*\])$', (folder.parents[1] / "pyproject.toml").read_text(), re.MULTILINE
    )
    others = {path.name for path in folder.iterdir() if path.is_file() and path.suffix != ".py"}
    assert others == set(json.loads(line[1]))


# ----------------------------------------------------------------------------------------------- documents


def test_a_document_has_its_formulas_headings_and_links(page):
    formulas = [svg for svg in page.all("svg") if svg.get("role") == "img"]
    assert len(formulas) == 2
    assert all(
        svg["aria-label"].startswith(r"C_{ijk}(\mathbf{x})") and svg["fill"] == "currentColor" for svg in formulas
    )
    assert "$$" not in page.text
    glyphs = [use["href"] for use in page.all("use")]
    assert glyphs[: len(glyphs) // 2] == glyphs[len(glyphs) // 2 :]  # the same formula twice
    assert len(set(glyphs)) == len(page.all("path")) - 2  # each outline once; and in each formula the fraction's bar
    assert {"how-to-read-it", "equation-1"} <= set(page.values("id")) and "#equation-1" in page.values("href")
    assert "line 70: test.py::test_it tests/test.py:181." in page.text
    assert "elsewhere https://example.org/page" in page.text and "[bad](javascript:alert(1))" in page.text
    assert "!a picture https://example.org/x.png" in page.text


def test_a_formula_that_cannot_be_set_is_refused():
    with pytest.raises(ValueError, match="nothing"):
        as_html(Document("d", r"$$\nothing{x}$$", "nowhere"), "glyph")


def test_the_equations_page_is_a_section(tmp_path):
    section = equations_section.section()
    assert section.data["equations"] == list(range(1, 24))
    report.write([section], MAKING, tmp_path)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    ids = page.values("id")
    assert all(f"equation-{n}" in ids for n in range(1, 24)) and "second-derivatives" in ids
    assert all(target.removeprefix("#") in ids for target in page.values("href"))
    formulas = re.findall(r"^\$\$(.*)\$\$$", equations_section.PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert [svg["aria-label"] for svg in page.all("svg") if svg.get("role") == "img"] == formulas
    assert "$$" not in page.text and "written by scripts" not in page.text and "](" not in page.text
    assert "equation-1" not in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_without_the_clone_the_section_says_so(tmp_path):
    section = equations_section.section(tmp_path / "equations.md")
    assert section.parts == [] and "not installed" in section.text[0]
    assert "not installed" in report.as_text(section)


# --------------------------------------------------------------------------------------------------- stamp


def test_the_stamp_of_this_process(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/home/somebody/cache")
    monkeypatch.setenv("LD_PRELOAD", "")
    made = stamp.make_stamp("python -m compare speed", seeds=range(3), dataset="mnist-sample", source="bundled")
    assert made.seeds == (0, 1, 2) and made.threads == torch.get_num_threads() and made.device == "cpu"
    assert made.versions["torch"] == torch.__version__ and {"python", "numpy", "manualgrad"} <= set(made.versions)
    assert made.environment["OMP_NUM_THREADS"] == "1"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", made.utc)
    assert "somebody" not in str(made) and str(Path.home()) not in str(made)
    rows = dict(made.rows())
    assert rows["data"] == "mnist-sample: bundled" and rows["command"] == "python -m compare speed"
    assert made.cores >= 1 and made.processor and made.allocator


def test_the_stamp_leaves_out_what_was_not_used():
    assert {"seeds", "data"}.isdisjoint(dict(stamp.make_stamp("python -m compare capabilities").rows()))


def test_the_commit_is_that_of_the_clone_and_says_if_files_were_changed(tmp_path, monkeypatch):
    def git(*arguments: str) -> str:
        author = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        run = subprocess.run(["git", "-C", tmp_path, *author, *arguments], capture_output=True, text=True, check=True)
        return run.stdout.strip()

    monkeypatch.setattr(stamp, "ROOT", tmp_path)
    assert stamp.make_stamp("").commit is None  # no clone
    git("init")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-m", "first")
    assert stamp.make_stamp("").commit == git("rev-parse", "HEAD")
    (tmp_path / "file").write_text("2")
    assert stamp.make_stamp("").commit == git("rev-parse", "HEAD") + ", with changes"
    inside = tmp_path / "site-packages"
    inside.mkdir()
    monkeypatch.setattr(stamp, "ROOT", inside)
    assert stamp.make_stamp("").commit is None  # somebody else's repository
