"""Promise: the page has the numbers of backprop, every equation where it is used, and the lines of code that ran."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from manualgrad import DocumentCNN, backprop, kernels
from manualgrad.follow import equations, network, quantities, stations
from manualgrad.follow.mathml import mathml
from manualgrad.follow.source_lines import cited_line
from manualgrad.follow.training import ETA, normalize
from manualgrad.ops.relu import relu_backward
from manualgrad.reference import operations as reference
from tests.follow.conftest import LIMIT, STEPS, Page

ROOT = Path(__file__).parents[2]


# ---------------------------------------------------------------------------------------------------- numbers


def model_of(arrays: dict[str, np.ndarray]) -> DocumentCNN:
    """Make a network with the page's weights."""
    model = network.make_network(1)
    with torch.no_grad():
        for l, layer in enumerate(model.layers_with_weights()):  # noqa: E741
            w = torch.from_numpy(arrays[f"w{l}"].copy())
            layer.weight.copy_(w.permute(3, 2, 0, 1) if w.dim() == 4 else w.t())
            layer.bias.copy_(torch.from_numpy(arrays[f"b{l}"].copy()))
    return model


@pytest.mark.parametrize("state", range(len(STEPS)))
def test_all_numbers_on_the_page_are_those_of_backprop(page: Page, dataset, state):
    arrays = page.quantities(state)
    model, digit, label = model_of(arrays), normalize(dataset.test.images[3:4], dataset), dataset.test.labels[3:4]
    with quantities.formulas_only():
        expected = backprop.per_example(model, digit, label, ETA)
        pairs = {f"x{len(expected.layers)}": expected.probabilities[0]}
        for l, layer in enumerate(expected.layers):  # noqa: E741
            step = expected.weights[l][0]
            pairs |= {f"x{l}": layer.x[0], f"z{l}": layer.z[0], f"delta{l}": expected.deltas[l][0]}
            pairs |= {
                f"dw{l}": step.permute(2, 3, 1, 0) if step.dim() == 4 else step.t(),
                f"db{l}": expected.biases[l][0],
            }
        cost = expected.cost.item()
        backprop.apply(model, backprop.backpropagate(model, digit, label, ETA))
        cost_after = backprop.per_example(model, digit, label, ETA).cost.item()
    # The order in which a BLAS adds up a product depends on the number of threads and on where its operands lie.
    for name, tensor in pairs.items():
        close = 1e-6 * tensor.abs().max().item()
        np.testing.assert_allclose(arrays[name], tensor, rtol=0, atol=close, err_msg=name)
    assert page.data["states"][state]["cost"] == pytest.approx(cost, rel=1e-6)
    assert page.data["states"][state]["cost_after"] == pytest.approx(cost_after, rel=1e-6)
    assert set(arrays) == {*pairs, "y", "dx1", "dx2", "dx3", "argmax0", "argmax1", "spread0", "spread1"} | {
        f"{letter}{l}"
        for letter in "wb"
        for l in range(4)  # noqa: E741
    }


@pytest.mark.parametrize("state", range(len(STEPS)))
def test_what_lies_between_two_deltas_is_right(page: Page, state):
    """``dx`` and ``spread`` equal the reference, and lead to δ by R'."""
    q = {name: array.astype(np.float64) for name, array in page.quantities(state).items()}
    close = {"rtol": 0, "atol": 1e-7}  # float32 sums of a hundred numbers below 0.1, in another order
    dx1 = reference.conv2d_grad_input(q["delta1"][None], q["w1"], (1, *q["x1"].shape))[0]
    np.testing.assert_allclose(q["dx1"], dx1, **close)
    np.testing.assert_allclose(q["dx2"], q["w2"] @ q["delta2"], **close)
    np.testing.assert_allclose(q["dx3"], q["w3"] @ q["delta3"], **close)
    for l, dx in ((0, q["dx1"]), (1, q["dx2"].reshape(4, 4, 8))):  # noqa: E741
        relu = np.maximum(q[f"z{l}"], 0)[None]
        np.testing.assert_array_equal(q[f"spread{l}"], reference.max_pool2d_backward(dx[None], relu)[0])
        delta = relu_backward(torch.from_numpy(q[f"spread{l}"]), torch.from_numpy(q[f"z{l}"]), 0.5)
        np.testing.assert_array_equal(q[f"delta{l}"], delta)


def test_training_goes_on_between_the_states(page: Page):
    assert [state["step"] for state in page.data["states"]] == list(STEPS)
    assert len(page.data["costs"]) == STEPS[-1]
    assert page.data["label"] == 0 and page.data["eta"] == ETA
    first, *others = [page.quantities(n)["w0"] for n in range(len(STEPS))]
    assert all((first != other).any() for other in others)


def test_following_changes_neither_the_model_nor_the_kernels_in_use(dataset):
    model, digit = network.make_network(0), normalize(dataset.test.images[:1], dataset)
    before, in_use = [parameter.clone() for parameter in model.parameters()], kernels.available().instructions
    followed = quantities.follow_digit(model, digit, 7, ETA)
    assert followed.cost_after_step < followed.cost
    assert kernels.available().instructions == in_use
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


# ------------------------------------------------------------------------------------------- equations and code


def test_every_equation_is_on_the_page_where_it_is_used(page: Page):
    sections = re.split(r'<section [^>]*id="(\w+)"', page.html)[1:]
    shown = {
        name: re.findall(r'data-equation="(\d+)"', html)
        for name, html in zip(sections[::2], sections[1::2], strict=True)
    }
    assert {int(number) for numbers in shown.values() for number in numbers} == set(range(1, 24))
    for station in stations.FORWARD + stations.BACKWARD:
        assert shown[station.name] == [str(number) for number in station.equations]
    assert page.html.count("<math") > 60


def test_the_equations_are_those_of_the_equations_page():
    text = (ROOT / "docs" / "equations.md").read_text(encoding="utf-8")
    for number, formulas in equations.EQUATIONS.items():
        section = text.partition(f"### Equation ({number})\n")[2].partition("\n### ")[0]
        assert f"$${formulas[-1]} \\qquad ({number})$$" in section
        assert all(f"$${formula}$$" in section for formula in formulas[:-1])
    assert all(f"$${formula}$$" in text for formula in equations.RECURSION.values())


def test_mathml_is_well_formed_and_refuses_what_it_does_not_know():
    class Tags(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.open: list[str] = []

        def handle_starttag(self, tag, attrs):
            if not (self.get_starttag_text() or "").endswith("/>"):
                self.open.append(tag)

        def handle_startendtag(self, tag, attrs):
            pass

        def handle_endtag(self, tag):
            assert self.open.pop() == tag

    for formula in (tex for formulas in equations.EQUATIONS.values() for tex in formulas):
        parser = Tags()
        parser.feed(mathml(formula))
        assert parser.open == []
    assert mathml("x_i^2") == (
        '<math display="block"><mrow><msubsup><mi>x</mi><mi>i</mi><mn>2</mn></msubsup></mrow></math>'
    )
    with pytest.raises(ValueError, match="not in the subset"):
        mathml(r"\int x")
    with pytest.raises(ValueError, match="ends too early"):
        mathml(r"\frac{1}")


def test_the_quoted_lines_stand_in_the_files_and_run(page: Page, dataset):
    quoted = re.findall(r'<pre data-file="([^"]+)" data-line="(\d+)"><code>(.*?)</code>', page.html, re.DOTALL)
    assert len(quoted) > 40
    for file, line, code in quoted:
        first = (
            code.partition("\n")[0]
            .replace("&lt;", "<")
            .replace("&gt;", ">")
            .replace("&#34;", '"')
            .replace("&#39;", "'")
        )
        assert (ROOT / file).read_text(encoding="utf-8").splitlines()[int(line) - 1].strip() == first

    wanted = {(str(ROOT / file), int(line)) for file, line, _ in quoted}
    files, ran = {file for file, _ in wanted}, set()

    def trace_lines(frame, event, argument):
        ran.add((frame.f_code.co_filename, frame.f_lineno))
        return trace_lines

    def trace_calls(frame, event, argument):
        return trace_lines if frame.f_code.co_filename in files else None

    before = sys.gettrace()
    sys.settrace(trace_calls)
    try:
        model, digit = network.make_network(0), normalize(dataset.test.images[:1], dataset)
        quantities.follow_digit(model, digit, 7, ETA)
        with quantities.formulas_only():
            model(digit)
    finally:
        sys.settrace(before)
    assert wanted <= ran


def test_a_citation_that_is_not_in_the_code_is_an_error():
    with pytest.raises(LookupError, match=r"expected one line with 'eq. \(99\)', got 0"):
        cited_line(backprop.forward, "eq. (99)")


# ------------------------------------------------------------------------------------------------- one small file


def test_the_page_loads_nothing(page: Page):
    assert "http" not in page.html.lower().replace("http-equiv", "")
    assert "default-src 'none'" in page.html
    assert not re.search(r"\b(import|fetch|XMLHttpRequest|WebSocket)\b\s*\(", page.html)
    for address in re.findall(r'(?:src|href|srcset)="([^"]*)"', page.html):
        assert address.startswith("#") or address == "data:,"
    assert "url(" not in page.html


def test_the_page_is_small(page: Page):
    assert len(page.html.encode()) * 5 / len(STEPS) < LIMIT


def test_anchors_and_pictures_exist(page: Page):
    ids = re.findall(r'\bid="([^"]+)"', page.html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', page.html)) <= set(ids)
    known = set(page.quantities(0)) | {"maxima0", "maxima1"}
    pictures = {name for name in re.findall(r'data-array="([^"]+)"', page.html) if "/" not in name}
    assert pictures <= known
    assert {"x0", "z0", "maxima0", "x1", "delta1", "spread0", "delta0", "w0", "dw0"} <= pictures
