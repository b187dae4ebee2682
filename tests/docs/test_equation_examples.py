"""Promise: the numbers of the examples in docs/equations.md are those of the code."""

from __future__ import annotations

import doctest
import math
import re

import numpy as np
import pytest
import torch

from manualgrad.reference import network as reference_network
from manualgrad.reference import operations as reference
from scripts.equations_page import PAGE, sheet_layout, sheet_weight
from tests.docs.code_blocks import BLOCK, check
from tests.docs.equations_text import NUMBERS, part, section


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
