"""Promise: on docs/equations.md every equation has its place, its code, its proof and numbers that are right.

The examples on the page are run with the layers; here their results are compared with ``manualgrad.reference``.
"""

from __future__ import annotations

import ast
import math
import re

import pytest
from matplotlib.mathtext import MathTextParser

from scripts import equations_page
from scripts.equations_page import LIMIT, LINK, PAGE, ROOT
from tests.docs.code_blocks import BLOCK, source_lines
from tests.docs.equations_text import NUMBERS, TEXT, part, section

FORMULAS = re.findall(r"\$\$(.*?)\$\$", TEXT, re.DOTALL)


every_equation = pytest.mark.parametrize("n", NUMBERS)


# ---------------------------------------------------------------------------------------------- place


def test_every_equation_has_its_heading_in_order_and_an_entry_in_the_contents():
    assert re.findall(r"^### Equation \((\d+)\)$", TEXT, re.MULTILINE) == [str(n) for n in NUMBERS]
    contents = TEXT[: TEXT.index("## How to read it")]
    assert re.findall(r"\[\((\d+)\)\]\(#equation-\1\)", contents) == [str(n) for n in NUMBERS]


@every_equation
def test_every_section_has_the_formula_and_all_its_parts(n):
    assert re.search(rf"^\$\$.*\\qquad \({n}\)\$\$$", section(f"Equation ({n})"), re.MULTILINE)
    assert all(len(part(n, name).strip()) > 20 for name in ("Reading", "Code", "Proof", "By hand"))


@pytest.mark.parametrize("n", [2, 3, 12, 15, 18, 19, 20, 21])
def test_the_derivations_are_there(n):
    assert part(n, "Derivation").count("$$") >= 2


def test_every_misprint_is_a_footnote_and_has_a_link():
    """The equations are the corrected ones: only the footnotes quote the sheet."""
    footnotes = section("Footnotes: misprints of the formula sheet")
    linked = re.findall(r"\[Footnote \((\d+)\)\]\(#footnotes-misprints-of-the-formula-sheet\)", TEXT)
    assert linked == ["5", "13", "14", "15", "20", "21"]
    assert all(f"({n})" in footnotes for n in linked)
    assert not re.search(r"\b[Pp]rint(ed|s)\b", TEXT[: TEXT.index("## Footnotes")])


@pytest.mark.parametrize("subject", ["the convolution", "softmax", "the cost"])
def test_the_second_derivatives_are_there_and_proven_by_sympy(subject):
    text = section(f"Second derivatives of {subject}")
    assert text.count("$$") >= 4
    assert any("/test_symbolic" in file for _, file in LINK.findall(text))


def test_every_formula_renders_without_a_network():
    """Matplotlib supports fewer TeX commands than code-hosting sites: a formula that it renders, both render."""
    parser = MathTextParser("path")
    assert len(FORMULAS) > 40
    for formula in FORMULAS:
        parser.parse(f"${formula}$")


def test_markdown_leaves_every_formula_as_it_is():
    """Each formula is a line of its own, without Markdown's escapes and emphasis."""
    assert TEXT.count("$") == 4 * len(re.findall(r"^\$\$[^$\n]+\$\$$", TEXT, re.MULTILINE)) == 4 * len(FORMULAS)
    for formula in FORMULAS:
        assert not re.search(r"\\[^a-zA-Z]|[*`]|[})]_", formula), formula


# ------------------------------------------------------------------------------ code, proofs and errors


@every_equation
def test_every_equation_has_a_line_of_code_that_cites_it(n):
    links, (*blocks,) = LINK.findall(part(n, "Code")), BLOCK.findall(part(n, "Code"))
    assert links and all(file.startswith("manualgrad/") and "reference" not in file for _, file in links)
    source = [line for name, file in links for line in source_lines(file, name)]
    for line in "".join(blocks).splitlines():
        assert line.strip() in source
    assert all(equations_page.is_cited(block.splitlines()[-1], n) for block in blocks)


def assert_is_a_test_that_runs(name, file):
    nodes = ast.parse((ROOT / file).read_text(encoding="utf-8")).body
    (test,) = [node for node in nodes if isinstance(node, ast.FunctionDef) and node.name == name]
    assert re.fullmatch(r"tests/\w+/test_\w+\.py", file) and name.startswith("test_")
    assert any(isinstance(node, ast.Assert | ast.Call) for node in ast.walk(ast.Module(test.body, [])))
    assert not re.search(r"skip|xfail|slow", " ".join(map(ast.unparse, test.decorator_list)))


@every_equation
def test_every_equation_has_a_proof_that_exists_and_runs(n):
    links = LINK.findall(part(n, "Proof"))
    assert links
    for link in links:
        assert_is_a_test_that_runs(*link)


@pytest.mark.parametrize("n", [2, 3, 7, 8, 10, 12, 15, 18, 19, 20, 21])
def test_derivatives_are_proven_by_sympy_too(n):
    assert any("/test_symbolic" in file for _, file in LINK.findall(part(n, "Proof")))


def test_every_link_of_the_page_leads_somewhere():
    for name, file in LINK.findall(TEXT):
        assert source_lines(file, name)
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", TEXT), re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", TEXT)) <= anchors
    pages = re.findall(r"\]\(([\w-]+\.md)\)", TEXT)
    assert all((PAGE.parent / page).exists() for page in pages)
    assert len(LINK.findall(TEXT)) + TEXT.count("](#") + len(pages) == TEXT.count("](")


@every_equation
def test_the_error_on_the_page_is_small(n):
    (error,) = re.findall(r"^- measured: (.*)$", part(n, "Proof"), re.MULTILINE)
    assert error == "0, equal to the last bit" or 0 < float(error) < LIMIT


@pytest.fixture(scope="module")
def errors():
    return equations_page.measured_errors()


def test_the_errors_measured_now_are_small(errors):
    assert sorted(errors) == list(NUMBERS)
    assert all(0 <= error < LIMIT for error in errors.values())


def test_the_page_is_what_the_script_writes(errors):
    written = equations_page.without_errors(equations_page.filled(TEXT, errors))
    assert equations_page.without_errors(TEXT) == written, "run python scripts/equations_page.py"


# ------------------------------------------------------------------------------- a wrong page is noticed


def test_an_equation_that_loses_its_code_line_is_noticed():
    assert equations_page.code(6, "[dense.py::dense_forward](../manualgrad/ops/dense.py)").startswith("return ")
    with pytest.raises(LookupError, match=r"\(7\) is not cited by dense_forward"):
        equations_page.code(7, "[dense.py::dense_forward](../manualgrad/ops/dense.py)")


def test_an_equation_that_loses_its_proof_is_noticed():
    with pytest.raises(LookupError, match=r"no test is marked as a proof of 'Equation \(24\)'"):
        equations_page.proofs("Equation (24)")


def test_a_citation_is_a_comment_behind_code():
    assert equations_page.is_cited("z = x * w  # eq. (6), (17)", 17)
    assert not equations_page.is_cited("# eq. (6)", 6)
    assert not equations_page.is_cited("z = x * w  # eq. (16)", 6)
    assert not equations_page.is_cited("z = x * w  # see (6)", 6)


def test_a_citation_behind_a_closing_bracket_quotes_the_whole_statement():
    source = "def f(x):\n    y = g(\n        x,\n    )  # eq. (6)\n    return y\n"
    assert equations_page.citations(6, source) == [("f", "y = g(\n    x,\n)  # eq. (6)")]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("", "", ""),
        ("- measured: ", "- measured: 1", ""),  # another machine rounds differently
        ("z.clamp(min=0)", "z.clamp(min=1)", "equations.md is stale"),
        ("test_pooling_is_equation_4", "test_pooling", "equations.md is stale"),
        ("### Equation (9)", "### Equation (8)", "(8) is not cited by relu_forward"),
    ],
)
def test_check_refuses_a_stale_page_and_changes_nothing(old, new, message, tmp_path, monkeypatch, capsys, errors):
    page = tmp_path / "equations.md"
    changed = TEXT.replace(old, new)
    assert (changed == TEXT) == (old == new)
    page.write_text(changed, encoding="utf-8")
    monkeypatch.setattr(equations_page, "PAGE", page)
    monkeypatch.setattr(equations_page, "measured_errors", lambda: errors)
    assert equations_page.main(["--check"]) == bool(message)
    assert message in capsys.readouterr().err
    assert page.read_text(encoding="utf-8") == changed


@pytest.mark.parametrize("error", [1e-11, math.nan])
def test_an_error_that_is_too_large_is_refused(error, tmp_path, monkeypatch):
    page = tmp_path / "equations.md"
    page.write_text("stale", encoding="utf-8")
    monkeypatch.setattr(equations_page, "PAGE", page)
    monkeypatch.setattr(equations_page, "measured_errors", lambda: dict.fromkeys(NUMBERS, 0.0) | {13: error})
    assert equations_page.main([]) == 1
    assert page.read_text(encoding="utf-8") == "stale"
