"""Promise: DocumentCNN and its native twin are the same function, and have the same costs in each training step."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import manualgrad as mg
from compare.native_network import copy_weights_from_native, from_native, native_twin, to_native
from manualgrad import data
from manualgrad.training.batches import minibatches, normalize

FOLDER = Path(os.environ.get("MANUALGRAD_DATA_DIR", Path(__file__).parents[3] / "shared" / "mnist"))


def make_small_model(subgradient=0.5, **options):
    sizes = {"image_size": (18, 20), "channels": (3, 4), "hidden": (6,), "classes": 5, **options}
    return mg.DocumentCNN(**sizes, subgradient=subgradient, dtype=torch.float64)


@pytest.mark.parametrize("options", [
    {},
    {"kernel_size": (4, 3)},
    {"stride": (2, 1), "channels": (3,), "kernel_size": 3},
    {"channels": (2, 3, 4), "kernel_size": 2, "hidden": ()},
    {"in_channels": 2, "hidden": (7, 6)},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("subgradient", [0, 0.5])
def test_native_twin_is_the_same_function(options, subgradient):
    model = make_small_model(subgradient, **options)
    twin = native_twin(model)
    x = torch.randn(4, options.get("in_channels", 1), 18, 20, dtype=torch.float64)
    labels = torch.tensor([4, 0, 2, 2])
    ours, native = model.cost(x, labels), F.cross_entropy(twin(x), labels)
    ours.backward()
    native.backward()
    # The two add up in different orders, and differ by a few units in the last place of float64.
    torch.testing.assert_close(ours, native, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(model.probabilities(x), F.softmax(twin(x), 1), rtol=1e-12, atol=1e-13)
    gradients = from_native({name: p.grad for name, p in twin.named_parameters()}, model)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-10, atol=1e-13)


def test_weights_round_trip_through_the_twin():
    model = make_small_model()
    twin, other = native_twin(model), make_small_model()
    assert not torch.equal(other.conv0.weight, model.conv0.weight)
    copy_weights_from_native(twin, other)
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name
    assert not torch.equal(twin.conv0.weight, model.conv0.weight), "the twin has an unflipped kernel"
    round_trip = from_native(to_native(model.state_dict(), model), model)
    assert all(torch.equal(round_trip[name], tensor) for name, tensor in model.state_dict().items())


def test_unflipped_or_unpermuted_twin_is_noticed():
    model = make_small_model()
    twin = native_twin(model)
    x = torch.randn(2, 1, 18, 20, dtype=torch.float64)
    for name in ("conv0.weight", "dense2.weight"):
        wrong = twin.state_dict() | {name: model.state_dict()[name]}
        changed = native_twin(model)
        changed.load_state_dict(wrong)
        assert (changed(x) - model(x)).abs().max() > 1e-3


def test_subgradient_other_than_0_and_half_has_no_twin():
    with pytest.raises(ValueError, match=r"0\.25 at 0"):
        native_twin(make_small_model(0.25))


def test_image_without_batch_dimension():
    model = make_small_model()
    x = torch.randn(1, 18, 20, dtype=torch.float64)
    torch.testing.assert_close(model(x), model(x.unsqueeze(0))[0])
    assert model.cost(x, torch.tensor(3)).shape == ()


@pytest.mark.parametrize(("options", "words"), [
    ({"image_size": 12}, "the input of convolution 1 is 4x4"),
    ({"channels": ()}, "at least one convolution"),
    ({"image_size": (28, 5)}, "the input of convolution 0 is 28x5"),
    ({"classes": 0}, "out_features must be an integer >= 1, got 0"),
])  # fmt: skip
def test_error_names_the_impossible_size(options, words):
    with pytest.raises(ValueError, match=words):
        mg.DocumentCNN(**options)


def train_side_by_side(dataset, epochs, batch_size):
    """Train both from the same weights on the same batches, by gradient descent in float64; return their costs."""
    torch.manual_seed(0)
    model = mg.DocumentCNN(dtype=torch.float64)
    twin = native_twin(model)
    optimizers = [torch.optim.SGD(network.parameters(), lr=0.05) for network in (model, twin)]
    costs = []
    order = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for x, labels in minibatches(dataset, torch.randperm(len(dataset.train), generator=order), batch_size):
            x = x.double()
            step_costs = (mg.softmax_cross_entropy(model(x), labels), F.cross_entropy(twin(x), labels))
            for cost, optimizer in zip(step_costs, optimizers, strict=True):
                optimizer.zero_grad()
                cost.backward()
                optimizer.step()
            costs.append([cost.item() for cost in step_costs])
    return model, twin, torch.tensor(costs, dtype=torch.float64)


@torch.no_grad()
def predictions(network, dataset):
    parts = (network(normalize(images, dataset).double()).argmax(1) for images in dataset.test.images.split(500))
    return torch.cat(list(parts))


def test_costs_equal_those_of_the_twin_on_the_sample():
    dataset = data.bundled_sample().limited(600)
    model, twin, costs = train_side_by_side(dataset, epochs=1, batch_size=10)
    assert costs[-5:, 0].mean() < costs[0, 0] / 2, "the cost did not decrease"
    assert (costs[:, 0] - costs[:, 1]).abs().max() < 1e-12
    assert torch.equal(predictions(model, dataset), predictions(twin, dataset))


@pytest.mark.slow
def test_costs_equal_those_of_the_twin_in_two_epochs_of_mnist():
    if not (FOLDER / "MNIST").is_dir():
        pytest.skip(f"needs the whole MNIST: set MANUALGRAD_DATA_DIR to a folder with MNIST/raw (not in {FOLDER})")
    dataset = data.load("mnist", FOLDER)
    model, twin, costs = train_side_by_side(dataset, epochs=2, batch_size=64)
    difference = (costs[:, 0] - costs[:, 1]).abs().max().item()
    print(f"{len(costs)} steps, largest difference of a cost {difference:.2e}")
    assert difference < 1e-10
    assert torch.equal(predictions(model, dataset), predictions(twin, dataset))
