"""Promise: on docs/equations.md every equation has its place, its code, its proof and numbers that are right.

The examples on the page are run with the layers; here their results are compared with ``manualgrad.reference``.
"""

from __future__ import annotations

import ast
import doctest
import math
import re

import numpy as np
import pytest
import torch
from matplotlib.mathtext import MathTextParser

from manualgrad.reference import network as reference_network
from manualgrad.reference import operations as reference
from scripts import equations_page
from scripts.equations_page import LIMIT, LINK, PAGE, ROOT, sheet_layout, sheet_weight
from tests.docs.code_blocks import BLOCK, check, source_lines

TEXT = PAGE.read_text(encoding="utf-8")
NUMBERS = range(1, 24)
FORMULAS = re.findall(r"\$\$(.*?)\$\$", TEXT, re.DOTALL)

every_equation = pytest.mark.parametrize("n", NUMBERS)


def section(title):
    """The text under a heading, up to the next heading."""
    (text,) = re.findall(rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    return text


def part(n, name):
    """One part of an equation's section: Reading, Derivation, Code, Proof or By hand."""
    pattern = rf"^\*\*{name}\.\*\*(.*?)(?=^\*\*[A-Z]|\Z)"
    (text,) = re.findall(pattern, section(f"Equation ({n})"), re.MULTILINE | re.DOTALL)
    return text


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


# -------------------------------------------------------------------------------------------- examples


@pytest.fixture(scope="module")
def inputs():
    """For each equation, the names that its section's examples define; the examples must print what the page says."""
    names, result = check(section("How to read it"), PAGE.name), {}
    for n in NUMBERS:
        text = section("4 Backpropagation") if n == 16 else ""
        result[n] = dict(check(text + section(f"Equation ({n})"), PAGE.name, names))
    return result


def examples(n):
    """Source and printed text of every example in an equation's section."""
    parse = doctest.DocTestParser().get_examples
    return [(example.source, example.want) for block in BLOCK.findall(part(n, "By hand")) for example in parse(block)]


def outputs(n):
    """The values that the page prints below its examples."""
    return [eval(printed, {"tensor": torch.tensor}) for _, printed in examples(n) if printed]


def close(shown, expected):
    """Raise AssertionError unless a value on the page is the expected one, rounded to four digits."""
    assert np.shape(shown) == np.shape(expected)
    assert np.abs(np.asarray(shown) - np.asarray(expected)).max() <= 5e-5


def test_every_sum_on_the_page_is_right():
    """A sum that is written out in numbers, such as 1*4 + 2*3, has the printed value."""
    count = 0
    for source, printed in (example for n in NUMBERS for example in examples(n)):
        code = source.partition("#")[0].strip()
        if re.search(r"[*/]", code) and not re.search(r"(?!log\b|round\b)[A-Za-z_]\w*", code):
            sums, results = (np.atleast_1d(eval(text, {"log": math.log})) for text in (code, printed))
            assert list(sums) == list(results)
            count += len(results)
    assert count >= 20


def test_the_example_of_1_to_3(inputs):
    x, _, g = (sheet_layout(inputs[3][name]) for name in ("x", "w", "g"))
    w = sheet_weight(inputs[3]["w"])
    z, z_00, z_01, correlation_00, correlation = outputs(1)
    close(sheet_layout(z), reference.conv2d(x, w))
    close(sheet_layout(correlation), reference.conv2d(x, w[::-1, ::-1]))
    assert [z_00, z_01, correlation_00] == [z[0, 0, 0, 0], z[0, 0, 0, 1], correlation[0, 0, 0, 0]]
    grad_x, corner, middle = outputs(2)
    close(sheet_layout(grad_x), reference.conv2d_grad_input(g, w, x.shape))
    assert [corner, middle] == [grad_x[0, 0, 0, 0], grad_x[0, 0, 1, 1]]
    grad_w, first, last = outputs(3)
    close(sheet_weight(grad_w), reference.conv2d_grad_weight(g, x, w.shape))
    assert [first, last] == [grad_w[0, 0, 0, 0], grad_w[0, 0, 1, 1]]


def test_the_example_of_4_with_its_tie(inputs):
    x, (p, grad_x) = sheet_layout(inputs[4]["x"]), outputs(4)
    close(sheet_layout(p), reference.max_pool2d(x))
    close(sheet_layout(grad_x), reference.max_pool2d_backward(np.array([[[[10.0], [20]]]]), x))
    assert (x[0, :, 2:] == x[0, :, 2:].max()).sum() == 3


def test_the_example_of_5():
    x = np.empty((1, 2, 3, 2))
    for i, j, k in np.ndindex(x.shape[1:]):
        x[0, i, j, k] = int(f"{i}{j}{k}")
    ours, native, place, distinct = outputs(5)
    close(ours, reference.flatten(x))
    close(native, x.transpose(0, 3, 1, 2).reshape(1, 12))
    assert ours[0][place] == 11
    assert distinct == len({i * 3 * 2 + i * 2 + k for i, j, k in np.ndindex(2, 3, 2)})


def test_the_example_of_6_to_8(inputs):
    x, w, g = (inputs[8][name].detach().numpy() for name in ("x", "w", "g"))
    (d, d_0), (grad_x, first), (grad_w, last) = outputs(6), outputs(7), outputs(8)
    close(d, reference.dense(x, w))
    close(grad_x, reference.dense_grad_input(g, w))
    close(grad_w, reference.dense_grad_weight(g, x))
    assert [d_0, first, last] == [d[0, 0], grad_x[0, 0], grad_w[1, 2]]


def test_the_example_of_9_and_10_at_zero(inputs):
    z, g = (inputs[10][name].detach().numpy() for name in ("z", "g"))
    assert list(np.sign(z)) == [-1, 0, 1]
    close(*outputs(9), reference.relu(z))
    (ours,), (native,) = outputs(10)
    close(ours, reference.relu_backward(g, z))
    close(native, reference.relu_backward(g, z, subgradient=0))


Z = np.array([[math.log(3), 0.0]])


def test_the_example_of_11_and_12(inputs):
    close(inputs[11]["z"], Z)
    close(*outputs(11), reference.softmax(Z))
    jacobian, by_hand = outputs(12)
    close(jacobian, reference.softmax_jacobian(Z)[0])
    close(jacobian[0], by_hand)


def test_the_example_of_13_to_15(inputs):
    z, y = (inputs[15][name].detach().double().numpy() for name in ("z", "y"))
    close(z, np.repeat(Z, 2, axis=0))
    assert list(y.sum(1)) == [1, 0.75]
    cost, mean = outputs(13)
    close(cost, reference.cost(z, y))
    costs, by_hand = outputs(14)
    close(costs, reference.example_costs(z, y))
    close(costs, by_hand)
    close(mean, np.mean(by_hand))
    gradient = reference.example_costs_gradient(z, y)
    (of_costs,), second, last_line, eighths = outputs(15)
    close(of_costs, gradient)
    close(second, gradient[1])
    close(last_line, (reference.softmax(z) - y)[1, 0])
    close(eighths, 8 * gradient / 2)


def test_the_example_of_16_to_21(inputs):
    names = inputs[21]
    x, y, eta = sheet_layout(names["x0"]), names["y"].numpy(), names["eta"]
    weights = [sheet_weight(torch.tensor(w)) for w in ([[[[1, -1], [0, 1]]]], [[1], [-1]])]
    biases = [np.array([-1.0]), np.array([math.log(3) - 2, 2])]
    zs, xs = reference_network.forward(x, weights, biases)
    z_0, x_1, x_2 = outputs(16)
    close(z_0, zs[0][0, :, :, 0])
    close(x_1, xs[1])
    close(x_2, xs[2])
    z_10, z_1, before = outputs(17)
    assert z_10 == z_0[1, 0]
    close(z_1, zs[1])
    close(before, reference.cost(zs[1], y))

    deltas, weight_steps, bias_steps = reference_network.backpropagate(zs, xs, y, weights, biases, eta)
    delta_1, by_hand = outputs(19)
    close(delta_1, deltas[1])
    close(by_hand, deltas[1][0])
    entry, delta_0 = outputs(20)
    close(delta_0, deltas[0][0, :, :, 0])
    assert entry == delta_0[1, 0]
    (weight_1, bias_1), (weight_0, bias_0), by_hand, after, z_0_after = outputs(21)
    for shown, expected in zip((weight_0, weight_1), weight_steps, strict=True):
        close(sheet_weight(shown[0]), expected[0])
    for shown, expected in zip((bias_0, bias_1), bias_steps, strict=True):
        close(shown, expected)
    close(by_hand, weight_0.flatten())

    weights = [w + step for w, step in zip(weights, reference_network.batch_mean(weight_steps), strict=True)]
    biases = [b + step for b, step in zip(biases, reference_network.batch_mean(bias_steps), strict=True)]
    zs, _ = reference_network.forward(x, weights, biases)
    close(after, reference.cost(zs[-1], y))
    close(z_0_after, zs[0][0, :, :, 0])
    assert after < before and (z_0_after > 0).any()


def test_the_example_of_the_recursion_layer_by_layer(inputs):
    """Its x¹ is the image of (16) to (21), and its numbers are those of the loops."""
    text = section("The recursion, layer by layer")
    names = check(text, PAGE.name, dict(inputs[21]))
    weights = [sheet_weight(layer.weight).astype(float) for layer in names["deep"].layers_with_weights()]
    biases = [layer.bias.detach().numpy() for layer in names["deep"].layers_with_weights()]
    zs, xs = reference_network.forward(sheet_layout(names["image"]), weights, biases)
    deltas, weight_steps, bias_steps = reference_network.backpropagate(
        zs, xs, names["y"].numpy(), weights, biases, names["eta"]
    )
    assert (xs[1] == sheet_layout(names["x0"])).all()
    for ours, expected in zip(names["steps"].deltas, deltas, strict=True):
        close(ours, expected)
    close(sheet_weight(names["steps"].weights[0][0]), weight_steps[0][0])
    half = reference_network.backpropagate(zs, xs, names["y"].numpy(), weights, biases, names["eta"], subgradient=0)
    assert [round(float(steps[0].sum()), 5) for steps in (bias_steps, half[2])] == [-0.225, -0.3]
    assert "−0.3\n" in text


def test_the_table_names_lines_that_cite_20_and_21():
    """Every comment in the table, such as ∂C/∂x, ends a line of code of (20) or (21)."""
    table = "".join(re.findall(r"^\|.*\n", section("The recursion, layer by layer"), re.MULTILINE))
    markers = set(re.findall(r"∂[A-Z]/∂\w|[PF]⁻¹", table)) - {"∂J/∂x"}
    assert markers == {"∂C/∂x", "∂C/∂w", "∂D/∂x", "∂D/∂w", "∂R/∂z", "P⁻¹", "F⁻¹"}
    code = part(20, "Code") + part(21, "Code")
    comments = [line.partition("#")[2] for line in "".join(BLOCK.findall(code)).splitlines()]
    assert all(any(marker in comment for comment in comments) for marker in markers)


def test_the_sizes_of_22():
    rows, channels, parameters, table = 28, 1, 0, []
    for outputs in (16, 32):
        after = rows - 5 + 1
        table.append(f"({rows}, {rows}, {channels}) (5, 5, {channels}, {outputs}) ({after}, {after}, {outputs})")
        parameters += 5 * 5 * channels * outputs + outputs
        rows, channels = after // 2, outputs
    features = rows * rows * channels
    for outputs in (128, 10):
        table.append(f"({features},) ({features}, {outputs}) ({outputs},)")
        parameters += features * outputs + outputs
        features = outputs
    assert "\n".join(table) in part(22, "By hand")
    assert f"\n{parameters}\n" in part(22, "By hand")


def test_the_example_of_23(inputs):
    z, one = sheet_layout(inputs[23]["z"]), np.ones((1, 1, 1, 1))
    assert z.max() == 0
    (relu_first,), (maximum_first,) = outputs(23)
    close(sheet_layout(relu_first), reference_network.activation_backward("PR", one, z))
    g = reference.relu_backward(one, reference.max_pool2d(z))
    close(sheet_layout(maximum_first), reference.max_pool2d_backward(g, z))
