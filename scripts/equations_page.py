"""Writes docs/equations.md: every equation with its line of code, its proof, its measured error and an example.

python scripts/equations_page.py            # fills docs/equations.template.md
python scripts/equations_page.py --check    # writes nothing; 1 if the page is stale or an error is too large

Nothing on the page that can change is typed: lines of code are found by their "# eq. (n)", proofs by the names of
tests, errors are measured in this run, and the numbers of the examples come from the code that the page is about.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch
from torch import Tensor

from manualgrad import DocumentCNN, backprop, functional
from manualgrad.ops import conv2d, conv2d_geometry
from manualgrad.ops.dense import dense_apply, dense_forward
from manualgrad.ops.flatten import ImageSize, flatten_forward, unflatten_forward
from manualgrad.ops.layout import from_nchw, to_nchw
from manualgrad.ops.relu import relu_backward, relu_forward
from manualgrad.ops.softmax import softmax_backward, softmax_forward
from manualgrad.ops.softmax_cross_entropy import cross_entropy_backward, cross_entropy_forward
from manualgrad.ops.windows import Windows
from manualgrad.reference import network as reference_network
from manualgrad.reference import operations as reference

ROOT = Path(__file__).parents[1]
TEMPLATE, PAGE = ROOT / "docs" / "equations.template.md", ROOT / "docs" / "equations.md"
LIMIT = 1e-12

# ----------------------------------------------------------------------------- lines of code and tests

# The file whose citing lines are shown.
CODE = {
    1: "manualgrad/ops/conv2d.py",
    2: "manualgrad/ops/conv2d.py",
    3: "manualgrad/ops/conv2d.py",
    4: "manualgrad/ops/max_pool2d.py",
    5: "manualgrad/ops/flatten.py",
    6: "manualgrad/ops/dense.py",
    7: "manualgrad/ops/dense.py",
    8: "manualgrad/ops/dense.py",
    9: "manualgrad/ops/relu.py",
    10: "manualgrad/ops/relu.py",
    11: "manualgrad/ops/softmax.py",
    12: "manualgrad/ops/softmax.py",
    13: "manualgrad/ops/targets.py",
    14: "manualgrad/ops/softmax_cross_entropy.py",
    15: "manualgrad/ops/softmax_cross_entropy.py",
    16: "manualgrad/backprop.py",
    17: "manualgrad/backprop.py",
    18: "manualgrad/backprop.py",
    19: "manualgrad/backprop.py",
    20: "manualgrad/backprop.py",
    21: "manualgrad/backprop.py",
    22: "manualgrad/models.py",
    23: "manualgrad/models.py",
}

EQUATIONS, SYMBOLIC, BACKPROP = (
    "tests/ops/test_equations.py",
    "tests/ops/test_symbolic.py",
    "tests/network/test_backprop.py",
)
NETWORK = (EQUATIONS, "test_the_network_and_its_gradients_are_equations_16_to_23")
RECURSION = (BACKPROP, "test_every_delta_and_step_is_the_references")
STEP = (SYMBOLIC, "test_a_full_step_of_the_recursion_is_minus_eta_times_the_derivative_of_the_cost")

PROOFS: dict[int, list[tuple[str, str]]] = {
    1: [
        (EQUATIONS, "test_convolution_is_equations_1_and_17"),
        (EQUATIONS, "test_the_kernel_is_flipped_by_default_and_a_correlation_is_noticed"),
    ],
    2: [
        (EQUATIONS, "test_convolution_gradients_are_equations_2_3_and_17"),
        (SYMBOLIC, "test_equation_2_is_the_derivative_of_1"),
    ],
    3: [
        (EQUATIONS, "test_convolution_gradients_are_equations_2_3_and_17"),
        (SYMBOLIC, "test_equation_3_is_the_derivative_of_1"),
    ],
    4: [
        (EQUATIONS, "test_pooling_is_equation_4"),
        (EQUATIONS, "test_of_tied_maxima_the_first_takes_all"),
    ],
    5: [(EQUATIONS, "test_flatten_is_equation_5_and_its_gradient_the_way_back")],
    6: [(EQUATIONS, "test_dense_is_equations_6_and_17_and_its_gradients_7_8_and_17")],
    7: [
        (EQUATIONS, "test_dense_is_equations_6_and_17_and_its_gradients_7_8_and_17"),
        (SYMBOLIC, "test_equation_7_is_the_derivative_of_6"),
    ],
    8: [
        (EQUATIONS, "test_dense_is_equations_6_and_17_and_its_gradients_7_8_and_17"),
        (SYMBOLIC, "test_equation_8_is_the_derivative_of_6"),
    ],
    9: [(EQUATIONS, "test_relu_is_equation_9_and_its_gradient_10")],
    10: [
        (EQUATIONS, "test_relu_is_equation_9_and_its_gradient_10"),
        (SYMBOLIC, "test_equation_10_is_the_derivative_of_9_away_from_zero"),
        (SYMBOLIC, "test_at_zero_equation_10_is_the_mean_of_the_two_one_sided_derivatives"),
    ],
    11: [
        (EQUATIONS, "test_softmax_is_equation_11_and_its_jacobian_12"),
        (SYMBOLIC, "test_softmax_does_not_change_with_a_shift_of_z"),
    ],
    12: [
        (EQUATIONS, "test_softmax_is_equation_11_and_its_jacobian_12"),
        (SYMBOLIC, "test_equation_12_is_the_derivative_of_11"),
    ],
    13: [
        (EQUATIONS, "test_cross_entropy_is_equations_13_and_14_and_its_gradient_15"),
        (EQUATIONS, "test_the_misprints_of_equations_13_and_14_are_noticed"),
    ],
    14: [
        (EQUATIONS, "test_cross_entropy_is_equations_13_and_14_and_its_gradient_15"),
        (EQUATIONS, "test_the_misprints_of_equations_13_and_14_are_noticed"),
    ],
    15: [
        (EQUATIONS, "test_cross_entropy_is_equations_13_and_14_and_its_gradient_15"),
        (SYMBOLIC, "test_equation_15_is_the_derivative_of_14_for_targets_of_any_sum"),
        (SYMBOLIC, "test_the_last_line_of_15_holds_where_the_targets_sum_to_1_and_only_there"),
    ],
    16: [NETWORK],
    17: [NETWORK, (EQUATIONS, "test_convolution_gradients_are_equations_2_3_and_17")],
    18: [
        RECURSION,
        (EQUATIONS, "test_the_recursion_agrees_with_finite_differences_of_each_examples_cost"),
        (SYMBOLIC, "test_delta_itself_is_minus_eta_times_the_derivative_of_the_cost_by_z"),
    ],
    19: [RECURSION, (EQUATIONS, "test_the_last_delta_is_minus_eta_times_softmax_less_target"), STEP],
    20: [RECURSION, STEP],
    21: [RECURSION, STEP],
    22: [NETWORK],
    23: [NETWORK, (EQUATIONS, "test_the_maximum_is_taken_after_the_relu")],
}

# The second derivatives have no number in the document.
SECOND = {
    "convolution": (SYMBOLIC, "test_each_of_the_three_convolutions_has_the_other_two_for_derivatives"),
    "softmax": (SYMBOLIC, "test_the_second_derivative_of_softmax"),
    "cost": (SYMBOLIC, "test_the_second_derivatives_of_the_cost"),
}


@cache
def read(file: str) -> list[str]:
    """The lines of a file of the repository."""
    return (ROOT / file).read_text(encoding="utf-8").splitlines()


def cites(line: str, equation: int) -> bool:
    """Does a line of code end with a comment such as "# eq. (1), (17)" that has the equation's number?"""
    comment = re.fullmatch(r" *[^\s#].*?#(.*\beq\. \(.*)", line)
    return comment is not None and f"({equation})" in comment[1]


def citing_lines(equation: int, file: str | None = None) -> list[tuple[int, str]]:
    """Number and text of every line of the file that cites the equation."""
    file = file or CODE[equation]
    found = [(n, line.strip()) for n, line in enumerate(read(file), start=1) if cites(line, equation)]
    if not found:
        raise LookupError(f"equation ({equation}) is not cited in {file}")
    return found


def code(equation: int, file: str | None = None) -> str:
    """A link to the first line of code that cites the equation, and the line."""
    return _code(file or CODE[equation], citing_lines(equation, file)[:1])


def codes(equation: int, file: str | None = None) -> str:
    """The same of all lines of that file that cite it."""
    return _code(file or CODE[equation], citing_lines(equation, file))


def _code(file: str, lines: list[tuple[int, str]]) -> str:
    links = ", ".join(f"[line {n}](../{file}#L{n})" for n, _ in lines)
    return f"`{file}`, {links}:\n\n```python\n" + "\n".join(text for _, text in lines) + "\n```"


def test_line(file: str, name: str) -> int:
    """Where the test is defined."""
    for node in ast.parse("\n".join(read(file))).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return node.lineno
    raise LookupError(f"{file} has no test {name}")


def link(proof: tuple[str, str]) -> str:
    """A link to a test."""
    file, name = proof
    return f"[{Path(file).name}::{name}](../{file}#L{test_line(file, name)})"


def proof(equation: int) -> str:
    """Links to the tests, as a list, and the measured error."""
    links = [f"- {link(proof)}" for proof in PROOFS[equation]]
    return "\n".join(links) + f"\n- measured: {measured(equation)}"


def second(name: str) -> str:
    """A link to the test of a second derivative."""
    return link(SECOND[name])


# ---------------------------------------------------------------------------------------------- errors


def random(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, shape)


def as_tensor(array: Any) -> Tensor:
    """A copy, float64."""
    return array.double().clone() if isinstance(array, Tensor) else torch.tensor(np.asarray(array, dtype=np.float64))


def geometry(x: Any, w: Any, stride: tuple[int, int] = (1, 1)) -> conv2d_geometry.Geometry:
    """How a kernel lies on an image, both in the document's layout, x (B, H, W, R) and w (P+1, Q+1, R, K)."""
    return conv2d_geometry.Geometry(Windows(tuple(w.shape[:2]), stride), tuple(x.shape[1:3]))


def pooled(x: Any, delta: Any) -> tuple[Tensor, Tensor]:
    """P(x) and P⁻¹(δ) of 2×2 windows, x (B, H, W, K), as the layer has them."""
    x = as_tensor(x).requires_grad_()
    p = from_nchw(functional.max_pool2d(to_nchw(x), 2))
    return p.detach(), torch.autograd.grad(p, x, as_tensor(delta))[0]


def difference(ours: Tensor, expected: Any) -> float:
    """The largest one; raises ValueError unless both are float64 of one shape."""
    expected = np.asarray(expected)
    if ours.dtype != torch.float64 or ours.shape != expected.shape:
        raise ValueError(f"{ours.dtype} {tuple(ours.shape)} cannot be compared with {expected.shape}")
    return float(np.abs(ours.numpy() - expected).max())


def layer_errors() -> dict[int, float]:
    """The largest difference of each formula in manualgrad/functions from reference.py, in float64."""
    errors: dict[int, float] = {}
    x, w, stride = random(2, 10, 8, 3, seed=1), random(3, 2, 3, 4, seed=2), (2, 3)
    lies = geometry(x, w, stride)
    z = reference.conv2d(x, w, None, stride)
    delta = random(*z.shape, seed=3)
    errors[1] = difference(conv2d.conv2d_forward(as_tensor(x), as_tensor(w), None, lies), z)
    for_x = reference.conv2d_grad_input(delta, w, x.shape, stride)
    errors[2] = difference(conv2d.conv2d_grad_input(as_tensor(delta), as_tensor(w), lies), for_x)
    for_w = reference.conv2d_grad_weight(delta, x, w.shape, stride)
    errors[3] = difference(conv2d.conv2d_grad_weight(as_tensor(delta), as_tensor(x), lies), for_w)

    x = np.random.default_rng(4).integers(-2, 3, (2, 7, 8, 3)).astype(float)  # with many ties
    p = reference.max_pool2d(x)
    delta = random(*p.shape, seed=5)
    best, back = pooled(x, delta)
    errors[4] = max(difference(best, p), difference(back, reference.max_pool2d_backward(delta, x)))
    flat = reference.flatten(x)
    errors[5] = max(
        difference(flatten_forward(as_tensor(x)), flat),
        difference(unflatten_forward(as_tensor(flat), ImageSize(3, 7, 8)), reference.unflatten(flat, (7, 8, 3))),
    )

    x, w, delta = random(3, 5, seed=6), random(5, 4, seed=7), random(3, 4, seed=8)
    inputs = as_tensor(x), as_tensor(w)
    errors[6] = difference(dense_forward(*inputs, None), reference.dense(x, w))
    for_x, for_w = through_dense(*inputs, as_tensor(delta))
    errors[7] = difference(for_x, reference.dense_grad_input(delta, w))
    errors[8] = difference(for_w, reference.dense_grad_weight(delta, x))

    z, delta = np.array([-2.0, -5e-324, -0.0, 0.0, 5e-324, 3.0]), random(6, seed=9)
    errors[9] = difference(relu_forward(as_tensor(z)), reference.relu(z))
    errors[10] = difference(relu_backward(as_tensor(delta), as_tensor(z), 0.5), reference.relu_backward(delta, z))

    z, delta = 3 * random(3, 4, seed=10), random(3, 4, seed=11)
    s = softmax_forward(as_tensor(z), -1)
    errors[11] = difference(s, reference.softmax(z))
    errors[12] = difference(softmax_backward(as_tensor(delta), s, -1), reference.softmax_backward(delta, z))

    y = np.array([[0, 0, 1, 0], [0.1, 0.2, 0.3, 0.4], [0.9, 0.5, 0.3, 0.7]])  # the last do not sum to 1
    errors[13] = difference(cross_entropy_forward(as_tensor(z), as_tensor(y) / 3, True), reference.cost(z, y))
    errors[14] = difference(cross_entropy_forward(as_tensor(z), as_tensor(y), False), reference.example_costs(z, y))
    one = torch.ones((), dtype=torch.float64)
    errors[15] = difference(
        cross_entropy_backward(one, as_tensor(z), as_tensor(y)), reference.example_costs_gradient(z, y)
    )
    return errors


def through_dense(x: Tensor, w: Tensor, delta: Tensor) -> list[Tensor]:
    """(7) and (8) as the layer's own backward has them, for δ: the gradients of x and of w."""
    x, w = x.clone().requires_grad_(), w.clone().requires_grad_()
    return list(torch.autograd.grad(dense_apply(x, w.t(), None), (x, w), delta))


def network_errors() -> dict[int, float]:
    """The same for section 4: ``manualgrad.backprop`` and DocumentCNN against reference/network.py, L = 4."""
    torch.manual_seed(0)
    model = DocumentCNN(2, (14, 13), (2, 3), (3, 2), (4,), 3, dtype=torch.float64)
    x, y, eta = random(2, 14, 13, 2, seed=12), np.array([[0, 0, 1], [0.2, 0.5, 0.4]]), 0.3
    weights = [_document_weight(layer.weight) for layer in model.weighted()]
    biases = [layer.bias.detach().numpy() for layer in model.weighted()]
    zs, xs = reference_network.forward(x, weights, biases)
    deltas, weight_steps, bias_steps = reference_network.backpropagate(zs, xs, y, weights, biases, eta)

    image = as_tensor(x).permute(0, 3, 1, 2)
    layers, probabilities = backprop.forward(model, image)
    steps = backprop.per_example(model, image, as_tensor(y), eta)
    mean = backprop.backpropagate(model, image, as_tensor(y), eta)
    ours = [layer.x for layer in layers] + [probabilities]

    def largest(ours: Sequence[Tensor], expected: Sequence[np.ndarray]) -> float:
        return max(difference(one, other) for one, other in zip(ours, expected, strict=True))

    document_steps = [_document_weight(step, examples=True) for step in steps.weights]
    document_means = [as_tensor(_document_weight(step)) for step in mean.weights]
    of_model = difference(model.probabilities(image).detach(), xs[-1])
    return {
        16: largest(ours, xs),
        17: largest([layer.z for layer in layers], zs),
        18: max(largest(steps.biases, bias_steps), largest(mean.biases, reference_network.batch_mean(bias_steps))),
        19: difference(steps.deltas[-1], deltas[-1]),
        20: largest(steps.deltas[:-1], deltas[:-1]),
        21: max(
            largest([as_tensor(step) for step in document_steps], weight_steps),
            largest(document_means, reference_network.batch_mean(weight_steps)),
        ),
        22: of_model,
        23: max(of_model, largest(ours, xs)),
    }


def _document_weight(weight: Tensor, examples: bool = False) -> np.ndarray:
    """PyTorch's (K, R, P+1, Q+1) or (J, I) as the document's (P+1, Q+1, R, K) or (I, J), for each example or not."""
    weight = weight.detach() if examples else weight.detach().unsqueeze(0)
    weight = weight.permute(0, 3, 4, 2, 1) if weight.dim() == 5 else weight.transpose(1, 2)
    return (weight if examples else weight[0]).numpy()


@cache
def all_errors() -> dict[int, float]:
    return layer_errors() | network_errors()


def measured(equation: int) -> str:
    """The largest difference, as the page has it."""
    error = all_errors()[equation]
    return f"{error:.1e}" if error else "0, equal to the last bit"


# -------------------------------------------------------------------------------------------- examples


def plain(value: float, digits: int = 4) -> str:
    """A number as a person writes it: 3, −0.75, 0.2877."""
    text = f"{round(float(value), digits):.{digits}f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "0") else text.replace("-", "−")


def grid(array: Any) -> str:
    """A matrix or a row, its columns in line."""
    rows = [[plain(v) for v in row] for row in np.atleast_2d(np.asarray(array))]
    width = max(len(text) for row in rows for text in row)
    return "\n".join("  ".join(text.rjust(width) for text in row) for row in rows)


def beside(arrays: dict[str, Any]) -> str:
    """Matrices next to each other in a code block, each with its name above it."""
    columns = []
    for name, array in arrays.items():
        lines = grid(array).splitlines()
        width = max(len(name), *(len(line) for line in lines))
        columns.append([name.ljust(width), *(line.ljust(width) for line in lines)])
    height = max(map(len, columns))
    columns = [column + [" " * len(column[0])] * (height - len(column)) for column in columns]
    return "```text\n" + "\n".join("    ".join(row).rstrip() for row in zip(*columns, strict=True)) + "\n```"


def listed(values: Any) -> str:
    """(1, −2, 0.5)."""
    return "(" + ", ".join(plain(v) for v in np.ravel(values)) + ")"


def products(pairs: Sequence[tuple[float, float]]) -> str:
    """1·4 + 2·3 = 10."""
    total = sum(a * b for a, b in pairs)
    return " + ".join(f"{_factor(a)}·{_factor(b)}" for a, b in pairs) + f" = {plain(total)}"


def _factor(value: float) -> str:
    text = plain(value)
    return f"({text})" if value < 0 else text


def fraction(value: float) -> str:
    """3/16."""
    return str(Fraction(float(value)).limit_denominator(1000)).replace("-", "−")


def fractions(values: Any) -> str:
    """(3/8, −1/32)."""
    return "(" + ", ".join(fraction(v) for v in np.ravel(values)) + ")"


def single(array: Any) -> Tensor:
    """A matrix as one image of one channel, (1, H, W, 1)."""
    return as_tensor(array)[None, :, :, None]


def as_kernel(array: Any) -> Tensor:
    """A matrix as the kernel of one channel, (P+1, Q+1, 1, 1)."""
    return as_tensor(array)[:, :, None, None]


def convolution_example() -> dict[str, Any]:
    """A 3×3 image and a 2×2 kernel, P = Q = 1, stride 1, one channel."""
    x, w, delta = [[1, 2, 0], [3, 1, 4], [0, 2, 5]], [[1, 2], [3, 4]], [[1, 0], [-1, 2]]
    lies = geometry(single(x), as_kernel(w))
    flat = conv2d_geometry.Geometry(lies.windows, lies.size, flip=False)
    return {
        "x": x,
        "w": w,
        "delta": delta,
        "z": conv2d.conv2d_forward(single(x), as_kernel(w), None, lies)[0, :, :, 0].tolist(),
        "correlation": conv2d.conv2d_forward(single(x), as_kernel(w), None, flat)[0, :, :, 0].tolist(),
        "for_x": conv2d.conv2d_grad_input(single(delta), as_kernel(w), lies)[0, :, :, 0].tolist(),
        "for_w": conv2d.conv2d_grad_weight(single(delta), single(x), lies)[:, :, 0, 0].tolist(),
    }


def pooling_example() -> dict[str, Any]:
    """Two windows, the second a tie."""
    x, delta = [[1, 3, 2, 2], [5, 4, 0, 2]], [[10, 20]]
    best, back = pooled(single(x), single(delta))
    return {"x": x, "delta": delta, "p": best[0, :, :, 0].tolist(), "back": back[0, :, :, 0].tolist()}


def flatten_example() -> dict[str, Any]:
    """Two rows, three columns, two channels: an entry ijk is the number with the digits i, j and k."""
    x = torch.tensor([[[100 * i + 10 * j + k for k in range(2)] for j in range(3)] for i in range(2)])
    by_document = [f"{n:03d}" for n in flatten_forward(x[None])[0].tolist()]
    by_pytorch = [f"{n:03d}" for n in x.permute(2, 0, 1).flatten().tolist()]
    misprint = [2 * 3 * i + 2 * i + k for i in range(2) for _ in range(3) for k in range(2)]
    return {"document": by_document, "pytorch": by_pytorch, "misprint": len(set(misprint)), "places": x.numel()}


def dense_example() -> dict[str, Any]:
    """Two inputs, three outputs."""
    x, w, delta = [2, 3], [[1, 0, -1], [4, 2, 5]], [1, -2, 3]
    for_x, for_w = through_dense(as_tensor([x]), as_tensor(w), as_tensor([delta]))
    d = dense_forward(as_tensor([x]), as_tensor(w), None)[0]
    return {"x": x, "w": w, "delta": delta, "d": d.tolist(), "for_x": for_x[0].tolist(), "for_w": for_w.tolist()}


def relu_example() -> dict[str, Any]:
    z, delta = [-2, 0, 3], [5, 6, 7]
    back = relu_backward(as_tensor(delta), as_tensor(z), 0.5)
    natively = relu_backward(as_tensor(delta), as_tensor(z), 0.0)
    return {
        "z": z, "delta": delta, "r": relu_forward(as_tensor(z)).tolist(), "back": back.tolist(),
        "natively": natively.tolist(),
    }  # fmt: skip


LN3 = float(np.log(3))


def softmax_example() -> dict[str, Any]:
    """z = (ln 3, 0), whose exponentials are 3 and 1."""
    s = softmax_forward(as_tensor([LN3, 0]), -1)
    jacobian = softmax_backward(torch.eye(2, dtype=torch.float64), s, -1)
    return {"s": s.tolist(), "jacobian": jacobian.tolist()}


def cost_example() -> dict[str, Any]:
    """The same z, with targets that sum to 1 and with some that do not."""
    z, y = as_tensor([[LN3, 0], [LN3, 0]]), as_tensor([[0, 1], [0.5, 0.25]])
    one = torch.ones((), dtype=torch.float64)
    s = softmax_forward(z, -1)
    return {
        "y": y.tolist(),
        "costs": cross_entropy_forward(z, y, False).tolist(),
        "cost": cross_entropy_forward(z, y / 2, True).item(),
        "gradients": cross_entropy_backward(one, z, y).tolist(),
        "last_line": (s - y).tolist(),
        "mean": cross_entropy_backward(one, z, y / 2).tolist(),
    }


def toy() -> tuple[DocumentCNN, Tensor, Tensor, float]:
    """L = 2: C with a 2×2 kernel on a 3×3 image, F∘P∘R, D to two classes, S. Biases make z¹ = (ln 3, 0)."""
    model = DocumentCNN(1, 3, channels=(1,), kernel_size=2, hidden=(), classes=2, dtype=torch.float64)
    convolution, dense = model.weighted()
    with torch.no_grad():
        convolution.weight.copy_(as_tensor([[[[1, -1], [0, 1]]]]))
        convolution.bias.copy_(as_tensor([-1]))
        dense.weight.copy_(as_tensor([[1], [-1]]))
        dense.bias.copy_(as_tensor([LN3 - 2, 2]))
    return model, as_tensor([[[[1, 0, 2], [2, 1, 0], [0, 1, 1]]]]), as_tensor([[0, 1]]), 0.5


def recursion_example() -> dict[str, Any]:
    """Forward, one step by the recursion, and the cost before and after it."""
    model, x, y, eta = toy()
    layers, s = backprop.forward(model, x)
    steps = backprop.per_example(model, x, y, eta)
    w_0 = layers[0].w[:, :, 0, 0].tolist()
    before = model.cost(x, y).item()
    found = {
        "x0": x[0, 0].tolist(), "w0": w_0, "b0": model.weighted()[0].bias.item(),
        "z0": layers[0].z[0, :, :, 0].tolist(), "x1": layers[1].x.item(), "w1": layers[1].w[0].tolist(),
        "z1": layers[1].z[0].tolist(), "x2": s[0].tolist(), "y": y[0].tolist(), "eta": eta,
        "delta1": steps.deltas[1][0].tolist(), "step_w1": steps.weights[1][0, :, 0].tolist(),
        "step_b1": steps.biases[1][0].tolist(),
        "pulled": dense_forward(steps.deltas[1], layers[1].w.t(), None).item(),
        "delta0": steps.deltas[0][0, :, :, 0].tolist(), "step_w0": steps.weights[0][0, 0, 0].tolist(),
        "step_b0": steps.biases[0].item(), "before": before,
    }  # fmt: skip
    backprop.apply(model, backprop.backpropagate(model, x, y, eta))
    return found | {"after": model.cost(x, y).item()}


def order_example() -> dict[str, Any]:
    """A window whose largest z is 0: P(R(z)), as the document has it, and R(P(z)), which is not the same."""
    z, one = [[-1, 0], [-3, -2]], single([[1]])
    _, to_r = pooled(relu_forward(single(z)), one)
    after = relu_backward(to_r, single(z), 0.5)
    best, _ = pooled(single(z), one)
    _, before = pooled(single(z), relu_backward(one, best, 0.5))
    return {"z": z, "after": after[0, :, :, 0].tolist(), "before": before[0, :, :, 0].tolist()}


def network_example() -> dict[str, Any]:
    """The shapes of (23), for DocumentCNN's defaults and one digit."""
    model = DocumentCNN()
    layers, s = backprop.forward(model, torch.zeros(1, 1, 28, 28))
    rows = []
    for n, layer in enumerate(layers):
        rows.append([n, *(" × ".join(map(str, t.shape)) for t in (layer.x[0], layer.w, layer.z[0]))])
    return {"L": len(layers), "rows": rows, "probabilities": s.shape[1],
            "parameters": sum(p.numel() for p in model.parameters())}  # fmt: skip


EXAMPLES: dict[str, Callable[[], dict[str, Any]]] = {
    "conv": convolution_example,
    "pool": pooling_example,
    "flat": flatten_example,
    "dense": dense_example,
    "relu": relu_example,
    "soft": softmax_example,
    "cost": cost_example,
    "toy": recursion_example,
    "order": order_example,
    "net": network_example,
}

# ------------------------------------------------------------------------------------------------ page


def render() -> str:
    """The page as it is now."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, trim_blocks=True)
    helpers = (code, codes, proof, second, beside, listed, products, plain, fraction, fractions)
    environment.globals.update({helper.__name__: helper for helper in helpers})
    examples = {name: make() for name, make in EXAMPLES.items()}
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(**examples)
    return page.replace("<!-- template -->", "<!-- written by scripts/equations_page.py; do not edit -->")


def without_errors(page: str) -> str:
    """The page but for its measured errors, which differ from machine to machine in their last bits."""
    return re.sub(r"^- measured: .*$", "- measured", page, flags=re.MULTILINE)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if the page is stale")
    options = parser.parse_args(arguments)
    page = render()
    equation, error = max(all_errors().items(), key=lambda item: item[1])
    print(f"largest error: {error:.1e}, equation ({equation})")
    if not all(error < LIMIT for error in all_errors().values()):  # NaN is not below it
        print(f"above {LIMIT}", file=sys.stderr)
        return 1
    if not options.check:
        PAGE.write_text(page, encoding="utf-8")
        return 0
    committed = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    if without_errors(committed) != without_errors(page):
        print(f"docs/{PAGE.name} is stale: run python scripts/equations_page.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
