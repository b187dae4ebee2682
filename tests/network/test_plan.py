"""Promise: the network as one program of kernels gives the numbers of its layers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from manualgrad import backprop, kernels, softmax_cross_entropy
from manualgrad.network import guards
from tests.network.plan_models import (
    MARKS,
    architectures,
    cost_from_logits,
    every_instruction_set,
    few_examples,
    gradients,
    gradients_by_formulas,
    make_model,
    without_kernels,
)

pytestmark = MARKS


@every_instruction_set
@few_examples
@given(architecture=architectures, batch_size=st.sampled_from([0, 1, 2, 7, 33]), threads=st.integers(1, 4))
@example(architecture={}, batch_size=63, threads=2)
@example(architecture={}, batch_size=64, threads=1)
@example(architecture={"channels": (32, 64)}, batch_size=65, threads=3)
@example(architecture={}, batch_size=130, threads=1)  # more images than a task takes
def test_integer_results_equal_the_formulas_exactly(instructions, architecture, batch_size, threads):
    """Inputs have many ties and zeros. Numbers are multiples of 2⁻⁴ below 2²⁰: no addition rounds, in any order."""
    model, x, _ = make_model(batch_size, whole_numbers=True, **architecture)
    kernels.choose(instructions)
    torch.set_num_threads(threads)
    assert guards.explain(model, x) is None
    g = torch.randint(-1, 2, (batch_size, model.classes), generator=torch.Generator().manual_seed(1)).float()
    expected = gradients_by_formulas(model, x, g, torch.float64)
    assume(all(tensor.numel() == 0 or tensor.abs().max() < 2**20 for tensor in expected))
    for actual, exact in zip(gradients(model, x, g), expected, strict=True):
        assert torch.equal(actual.double(), exact)


@every_instruction_set
@few_examples
@given(architecture=architectures, batch_size=st.sampled_from([1, 2, 7, 33]), threads=st.integers(1, 4))
def test_random_results_are_as_close_to_float64_as_the_formulas(instructions, architecture, batch_size, threads):
    model, x, _ = make_model(batch_size, **architecture)
    kernels.choose(instructions)
    torch.set_num_threads(threads)
    g = torch.randn(batch_size, model.classes, generator=torch.Generator().manual_seed(1))
    exact, formulas = gradients_by_formulas(model, x, g, torch.float64), gradients_by_formulas(model, x, g)
    actual = gradients(model, x, g)

    def error(tensors):
        return sum((t.double() - r).square().sum() for t, r in zip(tensors, exact, strict=True)).sqrt()

    norm = sum(r.square().sum() for r in exact).sqrt()
    # Where rounding decides which of two numbers in a window is the maximum, a whole δ goes to the other position.
    assert error(actual) <= 4 * error(formulas) + 1e-6 * norm or error(actual) <= 0.05 * norm


@every_instruction_set
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize(
    "tensor_name", ["x", "conv0.weight", "conv1.weight", "conv1.bias", "dense2.weight", "dense3.bias"]
)
def test_infinities_and_nans_spread_as_by_the_formulas(instructions, value, tensor_name):
    model, x, _ = make_model(5)
    kernels.choose(instructions)
    with torch.no_grad():
        (x if tensor_name == "x" else model.get_parameter(tensor_name)).view(-1)[3] = value
    g = torch.ones(5, 10)
    for actual, expected in zip(gradients(model, x, g), gradients_by_formulas(model, x, g), strict=True):
        assert torch.equal(actual.isnan(), expected.isnan())
        assert torch.equal(actual.isinf(), expected.isinf())


@every_instruction_set
def test_backprop_has_the_bits_of_autograd(instructions):
    model, x, labels = make_model(65)
    kernels.choose(instructions)
    torch.set_num_threads(2)
    softmax_cross_entropy(model(x), labels).backward()
    updates = backprop.backpropagate(model, x, labels, eta=-1)
    for layer, weight, bias in zip(model.layers_with_weights(), updates.weights, updates.biases, strict=True):
        assert torch.equal(layer.weight.grad, weight)
        assert torch.equal(layer.bias.grad, bias)


@every_instruction_set
def test_intermediates_equal_the_formulas(instructions):
    """x^l, the pool indices and δ^l."""
    model, x, labels = make_model(7, hidden=(30, 20))
    kernels.choose(instructions)
    updates = backprop.backpropagate(model, x, labels)
    kernels.choose("off")
    expected = backprop.backpropagate(model, x, labels)
    assert len(updates.layers) == len(expected.layers) == 5
    for layer, expected_layer in zip(updates.layers, expected.layers, strict=True):
        assert type(layer) is type(expected_layer)
        torch.testing.assert_close(layer.x, expected_layer.x)
        torch.testing.assert_close(layer.z, expected_layer.z)
        if isinstance(layer, backprop.ConvLayer):
            assert torch.equal(layer.pool_index, expected_layer.pool_index)
    for delta, expected_delta in zip(updates.deltas, expected.deltas, strict=True):
        torch.testing.assert_close(delta, expected_delta, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(updates.probabilities, expected.probabilities)
    torch.testing.assert_close(updates.cost, expected.cost)


def test_two_runs_give_the_same_bits():
    model, x, _ = make_model(130)
    torch.set_num_threads(3)
    first, second = (gradients(model, x, torch.ones(130, 10)) for _ in range(2))
    assert all(map(torch.equal, first, second))


# --------------------------------------------------------------------------------------- regressions


def test_unflipped_kernels_equal_the_formulas():
    model, x, labels = make_model()
    convolved = model(x)
    model.conv0.flip_kernel = False
    assert guards.explain(model, x) is None
    torch.testing.assert_close(model(x), without_kernels(lambda: model(x)))
    model.conv1.flip_kernel = False
    correlated = model(x)
    assert not torch.allclose(correlated, convolved)
    torch.testing.assert_close(correlated, without_kernels(lambda: model(x)))
    updates = backprop.backpropagate(model, x, labels)
    by_formulas = without_kernels(lambda: backprop.backpropagate(model, x, labels))
    for actual, expected in zip(updates.weights, by_formulas.weights, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-7)


def test_ignored_labels_equal_the_formulas():
    model, x, labels = make_model()
    labels[2] = -100
    for targets in (labels, torch.full_like(labels, -100)):
        updates = backprop.backpropagate(model, x, targets)
        by_formulas = without_kernels(lambda targets=targets: backprop.backpropagate(model, x, targets))
        torch.testing.assert_close(updates.cost, by_formulas.cost, equal_nan=True)
        torch.testing.assert_close(updates.cost, cost_from_logits(model, x, targets).detach(), equal_nan=True)
        torch.testing.assert_close(model.cost(x, targets).detach(), updates.cost, equal_nan=True)
        expected = by_formulas.weights + by_formulas.biases
        for a, b in zip(updates.weights + updates.biases, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


def test_backprop_obeys_autocast():
    model, x, labels = make_model()
    with torch.autocast("cpu", torch.bfloat16):
        by_kernels = backprop.backpropagate(model, x, labels)
        by_formulas = without_kernels(lambda: backprop.backpropagate(model, x, labels))
    exact = backprop.backpropagate(model.double(), x.double(), labels).cost
    for cost in (by_kernels.cost, by_formulas.cost):
        assert cost.double() != exact.float().double(), "nothing was rounded to bfloat16"
        torch.testing.assert_close(cost.double(), exact, rtol=2**-7, atol=0)
