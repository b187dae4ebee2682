"""Promise: backprop gives the numbers of the reference, the bits of autograd, and native per-example gradients."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import func

import manualgrad as mg
from compare.native_network import from_native, native_twin
from manualgrad import backprop
from manualgrad.ops.layout import from_oihw, to_nchw
from manualgrad.reference import network as reference_network


def draw_architecture(seed: int) -> dict:
    """Random sizes, strides and depth of a small network for images of 26×23."""
    draw = random.Random(seed)
    kernel = (draw.randint(1, 4), draw.randint(1, 4))
    return {
        "in_channels": draw.randint(1, 3),
        "image_size": (26, 23),
        "channels": tuple(draw.randint(1, 4) for _ in range(draw.randint(1, 2))),
        "kernel_size": kernel,
        "hidden": tuple(draw.randint(2, 6) for _ in range(draw.randint(0, 2))),
        "classes": draw.randint(2, 5),
        "stride": (draw.randint(1, 2), draw.randint(1, 2)),
        "subgradient": draw.choice([0, 0.5, 1]),
    }


def make_example(seed: int):
    """(model, x, labels). Part of x and the bias of the first layer are exactly 0, so that z has exact zeros."""
    options = draw_architecture(seed)
    torch.manual_seed(seed)
    model = mg.DocumentCNN(**options, dtype=torch.float64)
    with torch.no_grad():
        model.conv0.bias.zero_()
    x = torch.randn(4, options["in_channels"], 26, 23, dtype=torch.float64)
    x[:, :, :, :9] = 0
    return model, x, torch.randint(options["classes"], (4,))


SEEDS = range(10)


def test_architectures_differ():
    assert len({str(draw_architecture(seed)) for seed in SEEDS}) == 10
    assert {len(draw_architecture(seed)["channels"]) for seed in SEEDS} == {1, 2}
    assert {len(draw_architecture(seed)["hidden"]) for seed in SEEDS} == {0, 1, 2}
    assert {draw_architecture(seed)["subgradient"] for seed in SEEDS} == {0, 0.5, 1}


@pytest.mark.parametrize("seed", SEEDS)
# proves eq. (18), (19), (20), (21)
def test_deltas_and_updates_equal_the_reference(seed):
    model, x, labels = make_example(seed)
    layers = model.layers_with_weights()
    weights = [(from_oihw(f.weight) if f.weight.dim() == 4 else f.weight.t()).detach().numpy() for f in layers]
    biases = [f.bias.detach().numpy() for f in layers]
    stride = model.conv0.stride
    y = np.eye(model.classes)[labels]
    zs, xs = reference_network.forward(x.permute(0, 2, 3, 1).numpy(), weights, biases, stride)
    expected = reference_network.backpropagate(zs, xs, y, weights, biases, 0.3, stride, model.subgradient)
    ours = backprop.per_example(model, x, labels, eta=0.3)
    close = {"rtol": 0, "atol": 1e-12}  # sums of some hundred float64 numbers of size 1, in another order
    np.testing.assert_allclose(ours.probabilities, xs[-1], **close)
    for l, (delta, weight, bias) in enumerate(zip(*expected, strict=True)):  # noqa: E741
        np.testing.assert_allclose(ours.deltas[l], delta, **close)
        order = (0, 3, 4, 2, 1) if weight.ndim == 5 else (0, 2, 1)
        np.testing.assert_allclose(ours.weights[l].permute(order), weight, **close)
        np.testing.assert_allclose(ours.biases[l], bias, **close)
    mean = backprop.backpropagate(model, x, labels, eta=0.3)
    for examples, batch in zip(ours.weights + ours.biases, mean.weights + mean.biases, strict=True):
        torch.testing.assert_close(examples.mean(0), batch, **close)
    assert any(delta.any() for delta in expected[0]), "every delta is 0"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("seed", SEEDS)
def test_updates_have_the_bits_of_autograd(seed, dtype):
    model, x, labels = make_example(seed)
    model, x = model.to(dtype), x.to(dtype)
    cost = model.cost(x, labels)
    cost.backward()
    updates = backprop.backpropagate(model, x, labels, eta=-1)
    assert torch.equal(updates.cost, cost)
    for layer, weight, bias in zip(model.layers_with_weights(), updates.weights, updates.biases, strict=True):
        assert torch.equal(layer.weight.grad, weight)
        assert torch.equal(layer.bias.grad, bias)


@pytest.mark.parametrize("subgradient", [0, 0.5])
def test_per_example_updates_equal_vmap_of_native_gradients(subgradient):
    model = mg.DocumentCNN(image_size=16, channels=(2, 3), hidden=(5,), subgradient=subgradient, dtype=torch.float64)
    twin = native_twin(model)
    x, labels = torch.randn(6, 1, 16, 16, dtype=torch.float64), torch.arange(6)

    def cost(parameters, image, label):
        return F.cross_entropy(func.functional_call(twin, parameters, (image.unsqueeze(0),)), label.unsqueeze(0))

    native = func.vmap(func.grad(cost), in_dims=(None, 0, 0))(dict(twin.named_parameters()), x, labels)
    ours = backprop.per_example(model, x, labels, eta=-1)
    names = [name for name, layer in model.named_children() if layer in model.layers_with_weights()]
    for b in range(6):
        expected = from_native({name: gradient[b] for name, gradient in native.items()}, model)
        for name, weight, bias in zip(names, ours.weights, ours.biases, strict=True):
            torch.testing.assert_close(weight[b], expected[f"{name}.weight"], rtol=1e-10, atol=1e-13)
            torch.testing.assert_close(bias[b], expected[f"{name}.bias"], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_updates_of_16_bit_models_are_those_of_autograd(dtype):
    """The loss of a label is computed in float32 and its gradient rounded, in both; products round on their own."""
    model, x, labels = make_example(0)
    model, x = model.to(dtype), x.to(dtype)
    grads = torch.autograd.grad(model.cost(x, labels), [layer.weight for layer in model.layers_with_weights()])
    updates = backprop.backpropagate(model, x, labels, eta=-1)
    means = [each.mean(0) for each in backprop.per_example(model, x, labels, eta=-1).weights]
    for grad, *both in zip(grads, updates.weights, means, strict=True):
        for weight in both:
            assert weight.dtype == dtype
            assert (weight - grad).double().norm() <= 2 * torch.finfo(dtype).eps * grad.double().norm()


def test_updates_are_proportional_to_eta_and_lower_the_cost():
    model, x, labels = make_example(0)
    before = model.cost(x, labels)
    small, large = (backprop.backpropagate(model, x, labels, eta) for eta in (2**-7, 2**-6))
    for a, b in zip(small.weights + small.deltas, large.weights + large.deltas, strict=True):
        assert torch.equal(2 * a, b)
    backprop.apply(model, small)
    assert model.cost(x, labels) < before


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_descend_has_the_bits_of_backpropagate_and_apply(dtype):
    torch.manual_seed(1)
    model, x, labels = mg.DocumentCNN(dtype=dtype), torch.randn(9, 1, 28, 28, dtype=dtype), torch.arange(9)
    twin = copy.deepcopy(model)
    for _ in range(3):
        expected = backprop.backpropagate(twin, x, labels, 0.1)
        backprop.apply(twin, expected)
        version = model.conv0.weight._version
        updates = backprop.descend(model, x, labels, 0.1)
        assert model.conv0.weight._version > version, "autograd must notice the change of a saved weight"
        assert torch.equal(updates.cost, expected.cost)
        assert all(map(torch.equal, updates.weights + updates.biases, expected.weights + expected.biases))
        assert all(map(torch.equal, model.parameters(), twin.parameters()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_wrong_labels_leave_the_weights_unchanged(dtype):
    model, x = mg.DocumentCNN(dtype=dtype), torch.randn(2, 1, 28, 28, dtype=dtype)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(IndexError, match="between 0 and 9, got 10"):
        backprop.descend(model, x, torch.tensor([10, 3]), 0.1)
    assert all(map(torch.equal, model.parameters(), before))


def test_targets_need_not_sum_to_1():
    model, x, _ = make_example(1)
    y = torch.rand(4, model.classes, dtype=torch.float64) * 3
    model.cost(x, y).backward()
    updates = backprop.backpropagate(model, x, y, eta=-1)
    assert torch.equal(updates.weights[0], model.conv0.weight.grad)


def test_result_has_no_graph_and_arguments_are_unchanged():
    model, x, labels = make_example(2)
    before = [parameter.clone() for parameter in model.parameters()]
    updates = backprop.backpropagate(model, x.requires_grad_(), labels)
    assert not any(
        tensor.requires_grad for tensor in (updates.cost, *updates.deltas, *updates.weights, *updates.biases)
    )
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_empty_batch_has_zero_updates():
    model, x, labels = make_example(3)
    updates = backprop.per_example(model, x[:0], labels[:0])
    assert [weight.shape for weight in updates.weights] == [(0, *f.weight.shape) for f in model.layers_with_weights()]
    updates = backprop.backpropagate(model, x[:0], labels[:0])
    assert all((weight == 0).all() for weight in updates.weights)


def test_error_names_the_wrong_label():
    model, x, labels = make_example(4)
    with pytest.raises(IndexError, match=f"between 0 and {model.classes - 1}, got 99"):
        backprop.backpropagate(model, x, labels * 0 + 99)


def test_deltas_have_the_shape_of_z():
    model, x, labels = make_example(5)
    layers, _ = backprop.forward(model, x)
    updates = backprop.backpropagate(model, x, labels)
    assert [delta.shape for delta in updates.deltas] == [layer.z.shape for layer in layers]
    assert torch.equal(to_nchw(layers[0].z), mg.conv2d(x, model.conv0.weight, model.conv0.bias, model.conv0.stride))
