"""The code that computes an equation, (1) to (23), cites it and equals it.

``manualgrad.reference`` has the sums of the formula sheet (docs/equations.md) in nested loops. The layers are
compared with these loops, the loops' derivatives with finite differences of the loops' values, and both with
misprints of the formula sheet, which must be noticed.
"""

from __future__ import annotations

import ast
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from manualgrad import DocumentCNN, functional
from manualgrad.reference import network as reference_network
from manualgrad.reference import operations as reference

PACKAGE = Path(reference.__file__).parents[1]

# Sums of N products in two orders differ by at most 2Nε times the sum of the absolute values, ε = 1.1e-16. Here N is
# at most 36, of products below 1, and up to 646 in the networks, where the absolute values sum to less than 3: 4e-13
# in the worst case (measured: 2e-15). The error of a wrong index, sign or factor is orders of magnitude larger.
ROUNDING = 1e-12

# The error of a central difference is h² f‴/6 + ε f/h. With h = 1e-5 and f and f‴ up to 10, each is 2e-10 at most
# (measured: 6e-11).
STEP, DIFFERENCE = 1e-5, 1e-9


# ------------------------------------------------------------------------------------------- helpers


def rng(seed=0):
    return np.random.default_rng(seed)


def random(*shape, seed=0):
    """Random values between −1 and 1, all different, so that an exchange of two indices is noticed."""
    return rng(seed).uniform(-1, 1, shape)


def distinct(*shape, seed=0):
    """Values at least 0.01 from each other and from 0, so that no finite difference crosses a tie or a kink."""
    count = int(np.prod(shape))
    return (rng(seed).permutation(np.arange(count) - count // 2).reshape(shape) + 0.5) / 50


def tensor(array):
    return torch.from_numpy(array.copy()).requires_grad_()


def image(array):
    """The formula sheet's (N, H, W, C) as PyTorch's (N, C, H, W)."""
    return torch.from_numpy(array.transpose(0, 3, 1, 2).copy()).requires_grad_()


def kernel(array):
    """The formula sheet's (kH, kW, C_in, C_out) as PyTorch's (C_out, C_in, kH, kW)."""
    return torch.from_numpy(array.transpose(3, 2, 0, 1).copy()).requires_grad_()


def sheet(values):
    """A tensor in the formula sheet's layout: images as (N, H, W, C), other tensors unchanged."""
    values = values.detach()
    return (values.permute(0, 2, 3, 1) if values.dim() == 4 else values).numpy()


def sheet_kernel(values):
    return values.detach().permute(2, 3, 1, 0).numpy()


def gradients(output, delta, *inputs):
    """Σ δ ∂output/∂input for each input; δ has the formula sheet's layout."""
    delta = image(delta) if delta.ndim == 4 else tensor(delta)
    return torch.autograd.grad(output, inputs, delta.detach())


def close(ours, expected, within=ROUNDING):
    assert ours.dtype == expected.dtype == np.float64
    assert ours.shape == expected.shape
    assert np.abs(ours - expected).max() <= within


def differences(function, x):
    """∂f/∂x by central differences, where f = ``function`` returns one number."""
    slope = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        ends = []
        for step in (STEP, -STEP):
            moved = x.copy()
            moved[index] += step
            ends.append(function(moved))
        slope[index] = (ends[0] - ends[1]) / (2 * STEP)
    return slope


# ----------------------------------------------------------------------------------------- citations

CITED_BY = {
    1: ["ops/conv2d.py", "reference/operations.py"],
    2: ["ops/conv2d.py", "reference/operations.py"],
    3: ["ops/conv2d.py", "reference/operations.py"],
    4: ["ops/max_pool2d.py", "reference/operations.py"],
    5: ["ops/flatten.py", "reference/operations.py"],
    6: ["ops/dense.py", "reference/operations.py"],
    7: ["ops/dense.py", "reference/operations.py"],
    8: ["ops/dense.py", "reference/operations.py"],
    9: ["ops/relu.py", "reference/operations.py"],
    10: ["ops/relu.py", "reference/operations.py"],
    11: ["ops/softmax.py", "ops/softmax_cross_entropy.py", "reference/operations.py"],
    12: ["ops/softmax.py", "reference/operations.py"],
    13: ["ops/softmax_cross_entropy.py", "ops/targets.py", "reference/operations.py"],
    14: ["ops/softmax_cross_entropy.py", "reference/operations.py"],
    15: ["ops/softmax_cross_entropy.py", "reference/operations.py"],
    16: ["backprop.py", "models.py", "reference/network.py"],
    17: ["ops/bias.py", "ops/conv2d.py", "ops/dense.py", "models.py", "reference/operations.py"],
    18: ["backprop.py", "reference/network.py"],  # elsewhere autograd's engine computes (18) to (21)
    19: ["backprop.py", "reference/network.py"],
    20: ["backprop.py", "reference/network.py"],
    21: ["backprop.py", "reference/network.py"],
    22: ["models.py", "reference/network.py"],
    23: ["models.py", "reference/network.py"],
}


def citations(source):
    """Equations cited in comments at the end of a line of code, such as "# eq. (1), (17)"."""
    comments = re.findall(r"^ *[^\s#].*#(.*\beq\. \(.*)$", source, re.MULTILINE)
    return {int(number) for comment in comments for number in re.findall(r"\((\d+)\)", comment)}


@pytest.mark.parametrize(("equation", "file"), [(n, file) for n, files in CITED_BY.items() for file in files])
def test_each_equation_is_cited_by_the_code_that_computes_it(equation, file):
    assert equation in citations((PACKAGE / file).read_text(encoding="utf-8"))


def test_equations_1_to_23_and_no_others_are_cited():
    assert list(CITED_BY) == list(range(1, 24))
    files = PACKAGE.rglob("*.py")
    assert set().union(*(citations(file.read_text(encoding="utf-8")) for file in files)) == set(CITED_BY)


def test_a_citation_must_follow_code():
    assert citations("x = y  # eq. (1), (17)\n    return z  # the 1/B of eq. (13)\n") == {1, 13, 17}
    assert citations("# eq. (1)\n    # eq. (2)\nequation (3)\n") == set()


@pytest.mark.parametrize("module", [reference, reference_network])
def test_the_reference_shares_no_code_with_the_layers(module):
    imported = set()
    for node in ast.walk(ast.parse(Path(module.__file__).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {name.name for name in node.names}
        if isinstance(node, ast.ImportFrom):
            imported.add(node.module)
    assert imported <= {"__future__", "numpy", "manualgrad.reference.operations"}


# ------------------------------------------------------------------------- 2D convolution, (1) to (3)

# (x, w, stride): images and kernels that are not square, strides that differ. In the first, no window reaches row 9
# or columns 2 and 5; in the second, windows overlap along the columns alone; the third is one window.
CONVOLUTIONS = [
    ((2, 10, 8, 3), (3, 2, 3, 4), (2, 3)),
    ((3, 7, 9, 2), (2, 4, 2, 3), (3, 1)),
    ((2, 4, 5, 1), (4, 5, 1, 2), (1, 2)),
]


def convolution_case(x_shape, w_shape, stride):
    """x, w, b, δ and the stride."""
    x, w, b = random(*x_shape, seed=1), random(*w_shape, seed=2), random(w_shape[3], seed=3)
    return x, w, b, random(*reference.conv2d(x, w, b, stride).shape, seed=4), stride


@pytest.mark.parametrize("case", CONVOLUTIONS)
# proves eq. (1)
def test_convolution_is_equations_1_and_17(case):
    x, w, b, _, stride = convolution_case(*case)
    close(sheet(functional.conv2d(image(x), kernel(w), None, stride)), reference.conv2d(x, w, None, stride))
    close(sheet(functional.conv2d(image(x), kernel(w), tensor(b), stride)), reference.conv2d(x, w, b, stride))


@pytest.mark.parametrize("case", CONVOLUTIONS)
# proves eq. (2), (3), (17)
def test_convolution_gradients_are_equations_2_3_and_17(case):
    x, w, b, delta, stride = convolution_case(*case)
    ours = image(x), kernel(w), tensor(b)
    grad_x, grad_w, grad_b = gradients(functional.conv2d(*ours, stride), delta, *ours)
    close(sheet(grad_x), reference.conv2d_grad_input(delta, w, x.shape, stride))
    close(sheet_kernel(grad_w), reference.conv2d_grad_weight(delta, x, w.shape, stride))
    close(sheet(grad_b), reference.grad_bias(delta, b.shape))


@pytest.mark.parametrize("case", CONVOLUTIONS)
# proves eq. (1)
def test_the_kernel_is_flipped_by_default_and_a_correlation_is_noticed(case):
    x, w, _, _, stride = convolution_case(*case)
    expected = reference.conv2d(x, w, None, stride)
    correlation = sheet(functional.conv2d(image(x), kernel(w), None, stride, flip_kernel=False))
    assert np.abs(correlation - expected).max() > 0.1
    close(correlation, reference.conv2d(x, w[::-1, ::-1], None, stride))
    for axis in (0, 1):  # flipped in one direction alone is noticed too
        assert np.abs(reference.conv2d(x, np.flip(w, axis), None, stride) - expected).max() > 0.1


def test_rows_and_columns_that_no_window_reaches_get_an_exact_zero():
    x, w, _, delta, stride = convolution_case(*CONVOLUTIONS[0])
    ours = image(x)
    (gradient,) = gradients(functional.conv2d(ours, kernel(w), None, stride), delta, ours)
    reached = np.zeros(x.shape, dtype=bool)
    reached[np.ix_(range(2), range(9), [0, 1, 3, 4, 6, 7])] = True
    assert_array_equal(sheet(gradient) != 0, reached)
    assert_array_equal(reference.conv2d_grad_input(delta, w, x.shape, stride) != 0, reached)


# --------------------------------------------------------------------------------- Max-pooling, (4)

# (x, size, stride): the formula sheet's windows; overlapping ones, not square; windows with gaps between them.
POOLINGS = [((2, 7, 8, 3), (2, 2), (2, 2)), ((2, 7, 6, 2), (3, 2), (2, 1)), ((2, 8, 9, 2), (2, 2), (3, 4))]


def pooled(x, size, stride):
    """P(x) and P⁻¹(δ) of the layer, and δ."""
    ours = image(x)
    output = functional.max_pool2d(ours, size, stride)
    delta = random(*sheet(output).shape, seed=5)
    return sheet(output), sheet(gradients(output, delta, ours)[0]), delta


def assert_pooling_is_equation_4(x, size, stride):
    output, gradient, delta = pooled(x, size, stride)
    assert_array_equal(output, reference.max_pool2d(x, size, stride))
    close(gradient, reference.max_pool2d_backward(delta, x, size, stride))


@pytest.mark.parametrize(("shape", "size", "stride"), POOLINGS)
# proves eq. (4)
def test_pooling_is_equation_4(shape, size, stride):
    assert_pooling_is_equation_4(random(*shape), size, stride)


@pytest.mark.parametrize(("shape", "size", "stride"), POOLINGS)
# proves eq. (4)
def test_the_first_of_tied_maxima_receives_the_gradient(shape, size, stride):
    assert_pooling_is_equation_4(rng().integers(0, 2, shape).astype(float), size, stride)
    assert_pooling_is_equation_4(np.full(shape, -np.inf), size, stride)


@pytest.mark.parametrize(("shape", "size", "stride"), POOLINGS)
def test_nan_is_a_maximum_and_the_last_nan_receives_the_gradient(shape, size, stride):
    x = random(*shape)
    x[rng(1).uniform(size=shape) < 0.3] = np.nan
    assert_pooling_is_equation_4(x, size, stride)


@pytest.mark.parametrize(
    ("window", "index"),
    [
        ([[3, 1], [3, 3]], (0, 0)),
        ([[1, 3], [3, 2]], (0, 1)),
        ([[1, np.nan], [9, 2]], (0, 1)),
        ([[np.nan, np.inf], [np.nan, 2]], (1, 0)),
        ([[-np.inf, -np.inf], [-np.inf, -np.inf]], (0, 0)),
        ([[-0.0, 0.0], [0.0, -0.0]], (0, 0)),
    ],
)
def test_the_index_of_a_maximum_by_hand(window, index):
    window = np.array(window, dtype=float)
    assert reference.argmax_position(window) == index
    _, gradient, delta = pooled(window[None, :, :, None], (2, 2), (2, 2))
    expected = np.zeros((2, 2))
    expected[index] = delta.item()
    assert_array_equal(gradient[0, :, :, 0], expected)


def test_pixels_that_no_pooling_window_reaches_get_an_exact_zero():
    shape, size, stride = POOLINGS[2]  # rows 0, 1, 3, 4, 6, 7 and columns 0, 1, 4, 5 are reached
    _, gradient, _ = pooled(random(*shape), size, stride)
    assert gradient.any()
    assert not gradient[:, [2, 5]].any()
    assert not gradient[:, :, [2, 3, 6, 7, 8]].any()


# ------------------------------------------------------------------------------------- Flatten, (5)


# proves eq. (5)
def test_flatten_is_equation_5_and_its_gradient_the_inverse():
    x, delta = random(2, 3, 4, 5), random(2, 60, seed=1)
    ours = image(x)
    output = functional.flatten(ours)
    assert_array_equal(sheet(output), reference.flatten(x))
    assert_array_equal(sheet(gradients(output, delta, ours)[0]), reference.unflatten(delta, (3, 4, 5)))
    assert_array_equal(reference.unflatten(reference.flatten(x), (3, 4, 5)), x)


def test_the_misprint_of_equation_5_is_no_permutation():
    indices = list(itertools.product(range(3), range(4), range(5)))
    assert len({i * 4 * 5 + j * 5 + k for i, j, k in indices}) == 60
    assert len({i * 4 * 5 + i * 5 + k for i, j, k in indices}) < 60


def test_other_orders_than_equation_5_are_noticed():
    x = random(2, 3, 4, 5)
    ours = sheet(functional.flatten(image(x)))
    for axes in itertools.permutations((1, 2, 3)):
        assert np.array_equal(ours, x.transpose(0, *axes).reshape(2, 60)) == (axes == (1, 2, 3))


# ------------------------------------------------------------------------------- Dense, (6) to (8)


# proves eq. (6), (7), (8)
def test_dense_is_equations_6_and_17_and_its_gradients_7_8_and_17():
    x, w, b, delta = random(3, 5), random(5, 4, seed=1), random(4, seed=2), random(3, 4, seed=3)
    ours = tensor(x), tensor(w.T), tensor(b)
    output = functional.dense(*ours)
    grad_x, grad_w, grad_b = gradients(output, delta, *ours)
    close(sheet(functional.dense(*ours[:2])), reference.dense(x, w))
    close(sheet(output), reference.dense(x, w, b))
    close(sheet(grad_x), reference.dense_grad_input(delta, w))
    close(sheet(grad_w).T, reference.dense_grad_weight(delta, x))
    close(sheet(grad_b), reference.grad_bias(delta, b.shape))


# --------------------------------------------------------------------------------- ReLU, (9) and (10)

Z = np.array([-2.0, -1e-300, -5e-324, -0.0, 0.0, 5e-324, 1e-300, 3.0])  # 5e-324 is the smallest positive number


@pytest.mark.parametrize("subgradient", [0, 0.5, 1])
# proves eq. (9), (10)
def test_relu_is_equation_9_and_its_gradient_10(subgradient):
    delta, z = random(8), tensor(Z)
    output = functional.relu(z, subgradient=subgradient)
    (gradient,) = gradients(output, delta, z)
    assert_array_equal(sheet(output), [0, 0, 0, 0, 0, 5e-324, 1e-300, 3])
    assert_array_equal(sheet(output), reference.relu(Z))
    assert_array_equal(sheet(gradient), delta * ([0] * 3 + [subgradient] * 2 + [1] * 3))
    assert_array_equal(sheet(gradient), reference.relu_backward(delta, Z, subgradient))


def test_the_subgradient_is_one_half_by_default():
    z = tensor(Z)
    (gradient,) = gradients(functional.relu(z), np.ones(8), z)
    assert_array_equal(sheet(gradient), [0, 0, 0, 0.5, 0.5, 1, 1, 1])
    assert_array_equal(reference.relu_backward(np.ones(8), Z), sheet(gradient))


# ------------------------------------------------------------------------------ Softmax, (11) and (12)


# proves eq. (11), (12)
def test_softmax_is_equation_11_and_its_jacobian_12():
    z, delta = 3 * random(3, 4), random(3, 4, seed=1)
    ours = tensor(z)
    output = functional.softmax(ours)
    jacobians = [torch.autograd.functional.jacobian(functional.softmax, row).numpy() for row in ours.detach()]
    close(sheet(output), reference.softmax(z))
    close(np.stack(jacobians), reference.softmax_jacobian(z))
    close(sheet(gradients(output, delta, ours)[0]), reference.softmax_backward(delta, z))


# ------------------------------------------------------------------------ Cross-entropy, (13) to (15)

# Three examples of four classes: targets that sum to 1, and to 0.3, 2.4, 0.
TARGETS = {
    "one class": np.eye(4)[[2, 0, 3]],
    "sum 1": np.array([[0.1, 0.2, 0.3, 0.4], [0.7, 0, 0.05, 0.25], [0.25, 0.25, 0, 0.5]]),
    "any sum": np.array([[0.1, 0, 0.2, 0], [0.9, 0.5, 0.3, 0.7], [0, 0, 0, 0]]),
}


@pytest.mark.parametrize("y", TARGETS.values(), ids=TARGETS)
# proves eq. (13), (14), (15)
def test_cross_entropy_is_equations_13_and_14_and_its_gradient_15(y):
    z, delta = 3 * random(3, 4), random(3, seed=1)
    ours, target = tensor(z), torch.from_numpy(y)
    losses = functional.softmax_cross_entropy(ours, target, reduction="none")
    mean = functional.softmax_cross_entropy(ours, target)
    close(sheet(losses), reference.example_costs(z, y))
    close(sheet(mean), np.asarray(reference.cost(z, y)))
    expected = reference.example_costs_gradient(z, y)
    close(sheet(gradients(losses, delta, ours)[0]), delta[:, None] * expected)
    close(sheet(torch.autograd.grad(mean, ours)[0]), expected / 3)


def test_class_indices_are_targets_of_one_class():
    z = tensor(3 * random(3, 4))
    cost = functional.softmax_cross_entropy(z, torch.tensor([2, 0, 3]))
    y = TARGETS["one class"]
    close(sheet(cost), np.asarray(reference.cost(sheet(z), y)))
    close(sheet(torch.autograd.grad(cost, z)[0]), reference.example_costs_gradient(sheet(z), y) / 3)


@pytest.mark.parametrize("y", TARGETS.values(), ids=TARGETS)
def test_all_lines_of_equation_15_agree_but_the_last_needs_targets_that_sum_to_1(y):
    z = 3 * random(3, 4)
    x = reference.softmax(z)
    gradient = reference.example_costs_gradient(z, y)
    close(reference.softmax_backward(reference.output_gradient(x, y), z), gradient)
    sums = y.sum(1, keepdims=True)
    close(x * sums - y, gradient)
    assert (np.abs(x - y - gradient).max() <= ROUNDING) == np.allclose(sums, 1)


# proves eq. (13), (14)
def test_the_misprints_of_equations_13_and_14_are_noticed():
    z, y = 3 * np.abs(random(3, 4)), TARGETS["sum 1"]
    cost = functional.softmax_cross_entropy(tensor(z), torch.from_numpy(y)).item()
    costs = reference.example_costs(z, y)
    assert abs(cost - sum(costs) / 3) <= ROUNDING
    assert abs(cost - sum(costs) / 4) > 0.1  # b = 0 to B are B + 1 terms
    assert abs(cost - -(y * np.log(z)).sum() / 3) > 0.1  # z in place of its softmax


# ----------------------------------------------------------- the reference against finite differences


def test_convolution_reference_agrees_with_finite_differences():
    x, w, stride = random(2, 5, 6, 2), random(3, 2, 2, 3, seed=1), (2, 3)
    delta = random(*reference.conv2d(x, w, None, stride).shape, seed=2)

    def total(x, w, b=None):
        return (delta * reference.conv2d(x, w, b, stride)).sum()

    close(reference.conv2d_grad_input(delta, w, x.shape, stride), differences(lambda x: total(x, w), x), DIFFERENCE)
    close(reference.conv2d_grad_weight(delta, x, w.shape, stride), differences(lambda w: total(x, w), w), DIFFERENCE)
    for b in (random(3, seed=3), random(*delta.shape[1:], seed=3)):  # one for each channel, one for each position
        numeric = differences(lambda b: total(x, w, b), b)
        close(reference.grad_bias(delta, b.shape), numeric, DIFFERENCE)


@pytest.mark.parametrize(("shape", "size", "stride"), POOLINGS)
def test_pooling_reference_agrees_with_finite_differences(shape, size, stride):
    x = distinct(*shape)
    delta = random(*reference.max_pool2d(x, size, stride).shape)
    numeric = differences(lambda x: (delta * reference.max_pool2d(x, size, stride)).sum(), x)
    close(reference.max_pool2d_backward(delta, x, size, stride), numeric, DIFFERENCE)


def test_flatten_reference_agrees_with_finite_differences():
    x, delta = random(2, 3, 2, 4), random(2, 24, seed=1)
    numeric = differences(lambda x: (delta * reference.flatten(x)).sum(), x)
    close(reference.unflatten(delta, (3, 2, 4)), numeric, DIFFERENCE)


def test_dense_reference_agrees_with_finite_differences():
    x, w, b, delta = random(3, 5), random(5, 4, seed=1), random(4, seed=2), random(3, 4, seed=3)

    def total(x, w, b):
        return (delta * reference.dense(x, w, b)).sum()

    close(reference.dense_grad_input(delta, w), differences(lambda x: total(x, w, b), x), DIFFERENCE)
    close(reference.dense_grad_weight(delta, x), differences(lambda w: total(x, w, b), w), DIFFERENCE)
    close(reference.grad_bias(delta, b.shape), differences(lambda b: total(x, w, b), b), DIFFERENCE)


def test_relu_reference_agrees_with_finite_differences_even_at_zero():
    z, delta = distinct(4, 5), random(4, 5)
    z[1] = 0  # where a central difference is the mean of both sides: the formula sheet's ½
    numeric = differences(lambda z: (delta * reference.relu(z)).sum(), z)
    close(reference.relu_backward(delta, z), numeric, DIFFERENCE)


def test_softmax_and_cost_references_agree_with_finite_differences():
    z, delta = 3 * random(3, 4), random(3, 4, seed=1)
    numeric = differences(lambda z: (delta * reference.softmax(z)).sum(), z)
    close(reference.softmax_backward(delta, z), numeric, DIFFERENCE)
    for y in TARGETS.values():
        numeric = differences(lambda z, y=y: reference.cost(z, y), z)
        close(reference.example_costs_gradient(z, y) / 3, numeric, DIFFERENCE)


# --------------------------------------------------------------------- Backpropagation, (16) to (23)

ETA = 0.3

# For images of 20×18 with 2 channels; the first is the formula sheet's network, L = 4 as in (22).
NETWORKS = {
    "L = 4": {"channels": (2, 3), "kernel_size": (3, 2), "hidden": (4,)},
    "L = 4, 5x5": {"channels": (2, 3), "kernel_size": 5, "hidden": (4,)},
    "L = 2, stride": {"channels": (3,), "kernel_size": (2, 4), "hidden": (), "stride": (2, 3)},
    "L = 6": {"channels": (2, 3, 2), "kernel_size": 2, "hidden": (5, 4)},
}


def sheet_weight(weight):
    return sheet_kernel(weight) if weight.dim() == 4 else weight.detach().numpy().T


def weighted_layers(model):
    """Layers with a weight, one for each l."""
    return [layer for layer in model.children() if hasattr(layer, "weight")]


def ours(model, x, y):
    """The quantities of (16) to (23) by DocumentCNN and autograd. δ and Δ contain −η; δ is that of J^b, not of J."""
    xs, zs = [], []

    def record(layer, inputs, output):
        xs.append(*inputs)
        zs.append(output)

    for layer in weighted_layers(model):
        layer.register_forward_hook(record)
    cost = model.cost(image(x), torch.from_numpy(y))
    xs.append(functional.softmax(zs[-1]))
    deltas = torch.autograd.grad(cost, zs, retain_graph=True)
    cost.backward()
    return {
        "J": [sheet(cost)],
        "x": [sheet(x) for x in xs],
        "z": [sheet(z) for z in zs],
        "δ": [-ETA * len(y) * sheet(delta) for delta in deltas],
        "Δw": [-ETA * sheet_weight(layer.weight.grad) for layer in weighted_layers(model)],
        "Δb": [-ETA * sheet(layer.bias.grad) for layer in weighted_layers(model)],
    }


def expected(model, x, y, stride=(1, 1), subgradient=0.5):
    """The quantities of (16) to (23) by the reference."""
    weights = [sheet_weight(layer.weight) for layer in weighted_layers(model)]
    biases = [sheet(layer.bias) for layer in weighted_layers(model)]
    zs, xs = reference_network.forward(x, weights, biases, stride)
    deltas, *steps = reference_network.backpropagate(zs, xs, y, weights, biases, ETA, stride, subgradient)
    weight_steps, bias_steps = map(reference_network.batch_mean, steps)
    cost = np.asarray(reference.cost(zs[-1], y))
    return {"J": [cost], "x": xs, "z": zs, "δ": deltas, "Δw": weight_steps, "Δb": bias_steps}


def assert_same(ours, expected):
    assert ours.keys() == expected.keys()
    for name in expected:
        for result, reference_result in zip(ours[name], expected[name], strict=True):
            close(result, reference_result)


def network(**options):
    torch.manual_seed(0)
    # Layer by layer, so that hooks see every z and x; test_conv_relu_pool.py shows that fused layers are equal.
    return DocumentCNN(2, (20, 18), classes=3, dtype=torch.float64, fused=False, **options)


Y = np.array([[0, 0, 1], [0.2, 0.5, 0.3]])


@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
# proves eq. (16), (17), (22), (23)
def test_the_network_and_its_gradients_are_equations_16_to_23(options):
    model, x = network(**options), random(2, 20, 18, 2)
    results = ours(model, x, Y)
    assert all(step.any() for step in results["Δw"])
    assert_same(results, expected(model, x, Y, options.get("stride", (1, 1))))


def black_background():
    """Images with a random patch on zeros, like digits. With zero biases most z are exact zeros and tied."""
    x = np.zeros((2, 20, 18, 2))
    x[:, 7:12, 8:13] = random(2, 5, 5, 2)
    return x


@pytest.mark.parametrize("subgradient", [0, 0.5, 1])
def test_the_network_agrees_where_most_of_z_is_exactly_zero(subgradient):
    model, x = network(**NETWORKS["L = 4"], subgradient=subgradient), black_background()
    for layer in weighted_layers(model):
        torch.nn.init.zeros_(layer.bias)
    results = ours(model, x, Y)
    assert np.mean(results["z"][0] == 0) > 0.5
    assert_same(results, expected(model, x, Y, subgradient=subgradient))


# proves eq. (23)
def test_the_maximum_is_taken_after_the_relu():
    """F∘P∘R and F∘R∘P have equal values, but different gradients in a window without a positive number."""
    z = np.array([[-1.0, 0], [-2, 0]])[None, :, :, None]
    sheet_gradient = reference_network.activation_backward("FPR", np.ones((1, 1)), z)
    for first, second, agrees in (
        (functional.relu, functional.max_pool2d, True),
        (functional.max_pool2d, functional.relu, False),
    ):
        ours = image(z)
        (gradient,) = gradients(functional.flatten(second(first(ours))), np.ones((1, 1)), ours)
        assert np.array_equal(sheet(gradient), sheet_gradient) == agrees


def small_network(bias_shapes):
    """Weights and biases of an L = 4 network for images of 10×9, and two images with their targets."""
    weights = [random(3, 2, 1, 2, seed=1), random(3, 2, 2, 3, seed=2), random(3, 4, seed=3), random(4, 3, seed=4)]
    biases = [random(*shape, seed=5) for shape in bias_shapes]
    return weights, biases, random(2, 10, 9, 1, seed=6), np.array([[0, 0, 1], [0.9, 0.5, 0.3]])


CHANNEL_BIASES = [(2,), (3,), (4,), (3,)]
POSITION_BIASES = [(8, 8, 2), (2, 3, 3), (4,), (3,)]


@pytest.mark.parametrize("bias_shapes", [CHANNEL_BIASES, POSITION_BIASES], ids=["channels", "positions"])
# proves eq. (18)
def test_the_recursion_agrees_with_finite_differences_of_each_examples_cost(bias_shapes):
    """Δb = −η ∂J^b/∂b and Δw = −η ∂J^b/∂w, the first lines of (18) and (21), hold for every weight and bias."""
    weights, biases, x, y = small_network(bias_shapes)
    _, *steps = reference_network.backpropagate(
        *reference_network.forward(x, weights, biases), y, weights, biases, ETA
    )
    for parameters, parameter_steps in zip((weights, biases), steps, strict=True):
        for n, parameter in enumerate(parameters):
            for b in range(2):

                def example_cost(moved, n=n, b=b, parameters=parameters):
                    """J^b with parameter n replaced by ``moved``."""
                    original, parameters[n] = parameters[n], moved
                    zs, _ = reference_network.forward(x[b : b + 1], weights, biases)
                    parameters[n] = original
                    return reference.cost(zs[-1], y[b : b + 1])

                close(parameter_steps[n][b], -ETA * differences(example_cost, parameter), DIFFERENCE)


def test_a_bias_for_every_position_moves_by_delta_itself():
    """Equation (18) is Δb^l = δ^l for a bias of every position; for a bias of every channel δ^l is summed."""
    for bias_shapes in (POSITION_BIASES, CHANNEL_BIASES):
        weights, biases, x, y = small_network(bias_shapes)
        states = reference_network.forward(x, weights, biases)
        deltas, _, bias_steps = reference_network.backpropagate(*states, y, weights, biases, ETA)
        for delta, step in zip(deltas, bias_steps, strict=True):
            close(step, delta if step.shape == delta.shape else delta.sum((1, 2)))


# proves eq. (19)
def test_the_last_delta_is_minus_eta_times_softmax_less_target():
    """(19) is section 4.2's δ³ = −η(x⁴ − y) if the targets sum to 1."""
    weights, biases, x, _ = small_network(CHANNEL_BIASES)
    zs, xs = reference_network.forward(x, weights, biases)
    deltas, _, _ = reference_network.backpropagate(zs, xs, Y, weights, biases, ETA)
    close(deltas[-1], -ETA * (xs[-1] - Y))
