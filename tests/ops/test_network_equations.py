"""The network equals equations (16) to (23), and the reference's recursion agrees with finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from manualgrad import DocumentCNN, functional
from manualgrad.reference import network as reference_network
from manualgrad.reference import operations as reference
from tests.ops.sheet_arrays import DIFFERENCE, close, differences, gradients, image, random, sheet, sheet_kernel

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
