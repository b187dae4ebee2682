"""The layers equal their equations, (1) to (15) and (17).

``manualgrad.reference`` has the sums of the formula sheet (docs/equations.md) in nested loops. The layers are
compared with these loops, the loops' derivatives with finite differences of the loops' values
(``test_reference.py``), and both with misprints of the formula sheet, which must be noticed.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from manualgrad import functional
from manualgrad.reference import operations as reference
from tests.ops.sheet_arrays import (
    POOLINGS,
    ROUNDING,
    TARGETS,
    close,
    gradients,
    image,
    kernel,
    random,
    rng,
    sheet,
    sheet_kernel,
    tensor,
)

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
