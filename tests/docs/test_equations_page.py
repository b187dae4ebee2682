"""docs/equations.md is true: every equation has its place, its line of code and its proof, and numbers are right.

The script that writes the page computes its examples with the layers; here they are computed with
``reference/operations.py``, by hand, or by arithmetic on what the page itself prints.
"""

from __future__ import annotations

import ast
import math
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from matplotlib.mathtext import MathTextParser

from manualgrad.reference import network as reference_network
from manualgrad.reference import operations as reference
from scripts import equations_page

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "equations.md").read_text(encoding="utf-8")
NUMBERS = range(1, 24)
LIMIT = 1e-12

every_equation = pytest.mark.parametrize("n", NUMBERS)


def section(title):
    """What stands under a heading, up to the next one."""
    found = re.findall(rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert len(found) == 1, f"{len(found)} headings {title!r}"
    return found[0]


def equation(n):
    return section(f"Equation ({n})")


def part(n, name):
    """One of a section's parts, Reading, Code, Proof or By hand, up to the next."""
    found = re.findall(rf"^\*\*{name}\.\*\*(.*?)(?=^\*\*[A-Z]|\Z)", equation(n), re.MULTILINE | re.DOTALL)
    assert len(found) == 1, f"equation ({n}) has {len(found)} parts {name!r}"
    return found[0]


# ------------------------------------------------------------------------------------------- its place


def test_every_equation_has_its_heading_in_order_and_an_entry_in_the_contents():
    assert re.findall(r"^### Equation \((\d+)\)$", PAGE, re.MULTILINE) == [str(n) for n in NUMBERS]
    contents = PAGE[: PAGE.index("## How to read it")]
    assert re.findall(r"\[\((\d+)\)\]\(#equation-\1\)", contents) == [str(n) for n in NUMBERS]


@every_equation
def test_every_section_has_the_formula_and_all_its_parts(n):
    assert re.search(rf"^\$\$.*\\qquad \({n}\)\$\$$", equation(n), re.MULTILINE)
    for name in ("Reading", "Code", "Proof", "By hand"):
        assert len(part(n, name).strip()) > 20


@pytest.mark.parametrize("n", [2, 3, 12, 15])
def test_the_derivations_are_there(n):
    assert part(n, "Derivation").count("$$") >= 2


@pytest.mark.parametrize("what", ["the convolution", "softmax", "the cost"])
def test_the_second_derivatives_are_there(what):
    text = section(f"Second derivatives of {what}")
    assert text.count("$$") >= 4
    assert "test_symbolic.py" in text


FORMULAS = re.findall(r"\$\$(.*?)\$\$", PAGE, re.DOTALL)


def test_every_formula_renders_without_a_network():
    """Matplotlib's TeX has fewer commands than a code-hosting site's: what it can set, both can."""
    parser = MathTextParser("path")
    assert len(FORMULAS) > 40
    for formula in FORMULAS:
        parser.parse(f"${formula}$")


def test_markdown_leaves_every_formula_as_it_is():
    """Each on a line of its own, without what Markdown takes for an escape or for emphasis."""
    assert PAGE.count("$") == 4 * len(re.findall(r"^\$\$[^$\n]+\$\$$", PAGE, re.MULTILINE)) == 4 * len(FORMULAS)
    for formula in FORMULAS:
        assert not re.search(r"\\[^a-zA-Z]|[*`]|[})]_", formula), formula


# ------------------------------------------------------------------------------- its code and its proof


def source(file):
    return (ROOT / file).read_text(encoding="utf-8").splitlines()


def linked(text):
    """(text, file, line) of every link into the repository."""
    return [(name, file, int(n)) for name, file, n in re.findall(r"\[([^]]+)\]\(\.\./([^)#]+)#L(\d+)\)", text)]


@every_equation
def test_every_equation_has_a_line_of_code_that_cites_it(n):
    links = linked(part(n, "Code"))
    quoted = re.findall(r"```python\n(.*?)```", part(n, "Code"), re.DOTALL)
    lines = [line for block in quoted for line in block.splitlines()]
    assert len(lines) == len(links) >= 1
    for (name, file, number), line in zip(links, lines, strict=True):
        assert name == f"line {number}"
        assert file.startswith("manualgrad/") and "reference" not in file
        assert source(file)[number - 1].strip() == line
        assert re.search(rf"[^\s#].*#.*\beq\. \(.*\({n}\)|[^\s#].*#.*\beq\. \({n}\)", line)


def definitions(file):
    return {node.name: node for node in ast.parse("\n".join(source(file))).body if isinstance(node, ast.FunctionDef)}


def assert_is_a_test_that_runs(name, file, number):
    assert re.fullmatch(r"tests/test_\w+\.py", file)
    module, test = name.split("::")
    assert module == Path(file).name
    assert test.startswith("test_")
    node = definitions(file)[test]
    assert node.lineno == number
    assert any(isinstance(part, ast.Assert | ast.Call) for part in ast.walk(ast.Module(node.body, [])))
    assert not re.search(r"skip|xfail|slow", " ".join(map(ast.unparse, node.decorator_list)))


@every_equation
def test_every_equation_has_a_proof_that_exists_and_runs(n):
    links = linked(part(n, "Proof"))
    assert links
    for link in links:
        assert_is_a_test_that_runs(*link)


@pytest.mark.parametrize("n", [2, 3, 7, 8, 10, 12, 15, 18, 19, 20, 21])
def test_derivatives_are_proven_by_sympy_too(n):
    assert any(file == "tests/ops/test_symbolic.py" for _, file, _ in linked(part(n, "Proof")))


def test_every_link_of_the_page_leads_somewhere():
    for name, file, number in linked(PAGE):
        assert 1 <= number <= len(source(file))
        if "::" in name:
            assert_is_a_test_that_runs(name, file, number)
    headings = {
        re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", PAGE, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) <= headings
    assert len(linked(PAGE)) + PAGE.count("](#") == PAGE.count("](")


def test_the_page_is_what_the_script_writes():
    written = equations_page.without_errors(equations_page.render())
    assert equations_page.without_errors(PAGE) == written, "run python scripts/equations_page.py"


# ------------------------------------------------------------------------------------------- its errors


@every_equation
def test_the_error_on_the_page_is_small(n):
    (error,) = re.findall(r"^- measured: (.*)$", part(n, "Proof"), re.MULTILINE)
    assert error == "0, equal to the last bit" or 0 < float(error) < LIMIT


def test_the_errors_measured_now_are_small():
    errors = equations_page.all_errors()
    assert sorted(errors) == list(NUMBERS)
    assert all(0 <= error < LIMIT for error in errors.values())


# ------------------------------------------------------------------------ a page that is not true is noticed


def test_an_equation_that_loses_its_code_line_is_noticed(monkeypatch):
    lines = [line.replace("eq. (7)", "") for line in source("manualgrad/ops/dense.py")]
    monkeypatch.setattr(equations_page, "read", lambda file: lines)
    with pytest.raises(LookupError, match=r"\(7\) is not cited"):
        equations_page.code(7)


def test_an_equation_that_loses_its_proof_is_noticed():
    with pytest.raises(LookupError, match="no test test_that_is_gone"):
        equations_page.link(("tests/ops/test_equations.py", "test_that_is_gone"))


def test_a_citation_is_a_comment_behind_code():
    assert equations_page.cites("z = x * w  # eq. (6), (17)", 17)
    assert not equations_page.cites("# eq. (6)", 6)
    assert not equations_page.cites("z = x * w  # eq. (16)", 6)
    assert not equations_page.cites("z = x * w  # see (6)", 6)


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("", "", 0),
        ("- measured: ", "- measured: 1", 0),  # another machine rounds differently
        ("conv2d.py#L", "conv2d.py#L1", 1),
        ("= 17", "= 18", 1),
        ("### Equation (9)", "### Equation (8)", 1),
    ],
)
def test_check_refuses_a_stale_page_and_changes_nothing(old, new, code, tmp_path, monkeypatch, capsys):
    page = tmp_path / "docs" / "equations.md"
    page.parent.mkdir()
    changed = PAGE.replace(old, new)
    assert (changed == PAGE) == (old == new)
    page.write_text(changed, encoding="utf-8")
    monkeypatch.setattr(equations_page, "PAGE", page)
    monkeypatch.setattr(equations_page, "render", lambda: PAGE)
    assert equations_page.main(["--check"]) == code
    assert page.read_text(encoding="utf-8") == changed
    assert ("stale" in capsys.readouterr().err) == bool(code)


@pytest.mark.parametrize("error", [1e-11, math.nan])
def test_an_error_that_is_too_large_is_refused(error, tmp_path, monkeypatch):
    monkeypatch.setattr(equations_page, "PAGE", tmp_path / "equations.md")
    monkeypatch.setattr(equations_page, "all_errors", lambda: dict.fromkeys(NUMBERS, 0.0) | {13: error})
    assert equations_page.main([]) == 1
    assert not (tmp_path / "equations.md").exists()


# ----------------------------------------------------------------------------------------- its examples


def number(text):
    return float(Fraction(text.strip("()").replace("−", "-")))


def grids(n):
    """The named matrices of a section's code block."""
    (block,) = re.findall(r"```text\n(.*?)```", part(n, "By hand"), re.DOTALL)
    header, *lines = block.splitlines()
    starts = [match.start() for match in re.finditer(r"(?<!\S)\S", header)]
    found = {}
    for start, end in zip(starts, [*starts[1:], None], strict=True):
        rows = [[number(text) for text in line[start:end].split()] for line in lines]
        found[header[start:end].strip()] = np.array([row for row in rows if row])
    return found


def vectors(text):
    """Every (1, −2, 0.5) of a text."""
    found = re.findall(r"\((?:−?[\d./]+, )+−?[\d./]+\)", text)
    return [np.array([number(entry) for entry in vector.strip("()").split(", ")]) for vector in found]


def has(vectors, expected, within=5e-5):
    return any(v.shape == np.shape(expected) and np.abs(v - expected).max() <= within for v in vectors)


# Numbers, "·", "/", signs, brackets and logarithms, then "=" and a number.
SUM = re.compile(r"(?<![\w.])[(−]*(?:log\()?\d(?:[\d./·()+− ]|log\()* = −?\d+(?:[./]\d+)?(?![\d/·])")


def value(text):
    """What a sum comes to, exactly where it has no logarithm."""
    python = re.sub(r"\d+(?:\.\d+)?", r"Fraction('\g<0>')", text.replace("·", "*").replace("−", "-"))
    return eval(python, {"Fraction": Fraction, "log": math.log})


def test_every_sum_on_the_page_is_right():
    found = SUM.findall(PAGE)
    assert len(found) >= 20
    for line in found:
        left, right = line.rsplit(" = ", 1)
        assert abs(value(left) - value(right)) <= (5e-5 if "log" in left else 0), line
    assert value("1·4 + 2·(−3) − 1/2") == Fraction(-5, 2)
    assert SUM.findall("−log(1/4) = 1.3863, 2·(−3) = 5.") == ["−log(1/4) = 1.3863", "2·(−3) = 5"]


def image(array):
    return array[None, :, :, None]


def kernel(array):
    return array[:, :, None, None]


def test_the_example_of_1_to_3():
    first, second, third = grids(1), grids(2), grids(3)
    x, w, delta = image(first["x"]), kernel(first["w"]), image(second["δ"])
    assert np.array_equal(image(first["C"]), reference.conv2d(x, w))
    assert np.array_equal(second["w"], first["w"]) and np.array_equal(third["x"], first["x"])
    assert np.array_equal(third["δ"], second["δ"])
    assert np.array_equal(image(second["∂J/∂x"]), reference.conv2d_grad_input(delta, w, x.shape))
    assert np.array_equal(kernel(third["∂J/∂w"]), reference.conv2d_grad_weight(delta, x, w.shape))
    correlation = reference.conv2d(x, w[::-1, ::-1])[0, 0, 0, 0]
    assert f"would be\n1·1 + 2·2 + 3·3 + 1·4 = {correlation:.0f}." in part(1, "By hand")
    for text in ("1·4 + 2·3 + 3·2 + 1·1 = 17", "= 2·4 + 0·3 + 1·2 + 4·1 = 14."):
        assert text in part(1, "By hand")
    assert "1·1 + 0·2 + (−1)·3 + 2·4 = 6." in part(2, "By hand")
    assert "1·1 + 0·4 + (−1)·2 + 2·5 = 9." in part(3, "By hand")


def test_the_example_of_4_with_its_tie():
    found = grids(4)
    x, delta = image(found["x"]), image(found["δ"])
    assert np.array_equal(image(found["P"]), reference.max_pool2d(x))
    assert np.array_equal(image(found["P⁻¹(δ)"]), reference.max_pool2d_backward(delta, x))
    assert (found["x"][:, 2:] == found["P"][0, 1]).sum() == 3


def test_the_example_of_5():
    x = np.empty((1, 2, 3, 2))
    for i, j, k in np.ndindex(x.shape[1:]):
        x[0, i, j, k] = int(f"{i}{j}{k}")
    places = " ".join(f"{int(n):03d}" for n in reference.flatten(x)[0])
    assert f"(5)      {places}\n" in part(5, "By hand")
    natively = " ".join(f"{int(n):03d}" for n in x[0].transpose(2, 0, 1).ravel())
    assert f"PyTorch  {natively}\n" in part(5, "By hand")
    assert f"= {places.split().index('011')}." in part(5, "By hand")
    printed = {i * 3 * 2 + i * 2 + k for i, j, k in np.ndindex(2, 3, 2)}
    assert f"the 12 numbers would share\n{len(printed)} places" in part(5, "By hand")


def test_the_example_of_6_to_8():
    (x,), (delta, for_x) = vectors(part(6, "By hand")), vectors(part(7, "By hand"))
    w = grids(6)["w"]
    assert np.array_equal(grids(6)["D"], reference.dense(x[None], w))
    assert np.array_equal(for_x[None], reference.dense_grad_input(delta[None], w))
    assert np.array_equal(grids(8)["∂J/∂w"], reference.dense_grad_weight(delta[None], x[None]))


def test_the_example_of_9_and_10_at_zero():
    (z, r), (delta, ours, natively) = vectors(part(9, "By hand")), vectors(part(10, "By hand"))
    assert list(np.sign(z)) == [-1, 0, 1]
    assert np.array_equal(r, reference.relu(z))
    assert np.array_equal(ours, reference.relu_backward(delta, z))
    assert np.array_equal(natively, reference.relu_backward(delta, z, subgradient=0))


Z = np.array([[math.log(3), 0.0]])


def test_the_example_of_11_and_12():
    found = vectors(part(11, "By hand"))
    assert has(found, [0.75, 0.25]) and np.allclose(reference.softmax(Z), [[0.75, 0.25]], rtol=0, atol=LIMIT)
    assert np.allclose(grids(12)["∂S/∂z"], reference.softmax_jacobian(Z)[0], rtol=0, atol=LIMIT)
    assert "3/4·(1 − 3/4) = 3/16 and −3/4·1/4 = −3/16" in part(12, "By hand")


def test_the_example_of_13_to_15():
    y = np.array([vectors(part(14, "By hand"))[n] for n in (-2, -1)])
    z = np.repeat(Z, 2, axis=0)
    assert list(y.sum(1)) == [1, 0.75]
    costs = reference.example_costs(z, y)
    for cost in costs:
        assert f"{cost:.4f}" in part(13, "By hand") and f"{cost:.4f}" in part(14, "By hand")
    assert f"{reference.cost(z, y):.4f}" in part(13, "By hand")
    gradient = reference.example_costs_gradient(z, y)
    found = vectors(part(15, "By hand"))
    assert has(found, gradient[0], LIMIT)
    assert "1/2 = 1/16 = 0.0625 and\n1/4·3/4 − 1/4 = −1/16 = −0.0625." in part(15, "By hand")
    assert np.allclose(gradient[1], [1 / 16, -1 / 16], rtol=0, atol=LIMIT)
    assert has(found, (reference.softmax(z) - y)[1], LIMIT)
    assert has(found, gradient[0] / 2, LIMIT) and has(found, gradient[1] / 2, LIMIT)


def test_the_example_of_16_to_21():
    network = grids(17)
    text = {n: part(n, "By hand") for n in range(17, 22)}
    b_0, w_1 = -1.0, vectors(text[17])[0]
    assert "with b⁰ = −1:" in text[17]
    weights = [kernel(network["w⁰"]), w_1[None]]
    biases = [np.array([b_0]), np.array([math.log(3) - 2, 2])]
    x, y, eta = image(network["x⁰"]), np.array([[0.0, 1.0]]), 0.5
    zs, xs = reference_network.forward(x, weights, biases)
    assert np.array_equal(image(network["z⁰"]), zs[0])
    assert "x¹ = P(R(z⁰)) = 2" in text[17] and xs[1].item() == 2
    assert np.allclose(zs[1], Z, rtol=0, atol=LIMIT)
    assert has(vectors(text[17]), xs[2][0], LIMIT) and has(vectors(text[17]), y[0], LIMIT)
    before = reference.cost(zs[1], y)
    assert f"the cost is {before:.4f}." in text[17]

    deltas, weight_steps, bias_steps = reference_network.backpropagate(zs, xs, y, weights, biases, eta)
    assert "η = 0.5" in text[19] and has(vectors(text[19]), deltas[1][0], LIMIT)
    assert np.allclose(image(grids(20)["δ⁰"]), deltas[0], rtol=0, atol=LIMIT)
    assert np.allclose(kernel(grids(21)["Δw⁰"]), weight_steps[0][0], rtol=0, atol=LIMIT)
    assert has(vectors(text[21]), weight_steps[1][0, 0], LIMIT) and has(vectors(text[21]), bias_steps[1][0], LIMIT)
    assert f"the sum of δ⁰, is {bias_steps[0].item():.2f}.".replace("-", "−") in text[21]

    weights = [w + step for w, step in zip(weights, reference_network.batch_mean(weight_steps), strict=True)]
    biases = [b + step for b, step in zip(biases, reference_network.batch_mean(bias_steps), strict=True)]
    after = reference.cost(reference_network.forward(x, weights, biases)[0][-1], y)
    assert after < before
    assert f"the cost from {before:.4f} to {after:.4f}." in text[21]


def test_the_sizes_of_22():
    rows, channels, parameters, table = 28, 1, 0, []
    for n, outputs in enumerate((16, 32)):
        reached = rows - 5 + 1
        table.append(f"| {n} | {rows} × {rows} × {channels} | 5 × 5 × {channels} × {outputs} | "
                     f"{reached} × {reached} × {outputs} |")  # fmt: skip
        parameters += 5 * 5 * channels * outputs + outputs
        rows, channels = reached // 2, outputs
    inputs = rows * rows * channels
    for n, outputs in enumerate((128, 10), start=2):
        table.append(f"| {n} | {inputs} | {inputs} × {outputs} | {outputs} |")
        parameters += inputs * outputs + outputs
        inputs = outputs
    for line in table:
        assert line in part(22, "By hand")
    assert f"L = {len(table)}; x^L has {inputs} probabilities. Weights and biases are {parameters} numbers." in part(
        22, "By hand"
    )


def test_the_example_of_23():
    found = grids(23)
    z, one = image(found["z"]), np.ones((1, 1, 1, 1))
    assert z.max() == 0
    assert np.array_equal(image(found["P(R(z))"]), reference_network.activation_gradient("PR", one, z))
    pulled = reference.relu_backward(one, reference.max_pool2d(z))
    assert np.array_equal(image(found["R(P(z))"]), reference.max_pool2d_backward(pulled, z))
