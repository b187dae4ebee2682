"""Promise: a step by one program has the bits of backprop and SGD, or changes nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manualgrad import DocumentCNN, backprop, data, kernels
from manualgrad.cpu import jit
from manualgrad.network.descent import Descent
from manualgrad.training.batches import normalize
from manualgrad.training.fused_step import make_descent

INSTRUCTIONS = jit.instruction_sets() if kernels.available().instructions else ()
pytestmark = [
    pytest.mark.skipif(not INSTRUCTIONS, reason=str(kernels.available())),
    pytest.mark.usefixtures("restore_kernels"),
]

few_examples = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def make_model_and_descent(dataset: data.Dataset, batch: int = 20, **arguments) -> tuple[DocumentCNN, Descent]:
    torch.manual_seed(0)
    model = DocumentCNN(image_size=tuple(dataset.train.images.shape[-2:]), **arguments)
    descent = make_descent(model, dataset, batch)
    assert descent is not None
    return model, descent


architectures = st.fixed_dictionaries(
    {
        "channels": st.lists(st.sampled_from([16, 32, 48]), min_size=1, max_size=2),
        "kernel_size": st.tuples(st.integers(1, 5), st.integers(1, 5)),
        "hidden": st.lists(st.integers(1, 40), max_size=2),
        "subgradient": st.sampled_from([0.0, 0.5]),
    }
)


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@few_examples
@given(
    architecture=architectures,
    side=st.integers(18, 28),
    batch=st.sampled_from([1, 7, 33, 64]),
    threads=st.integers(1, 4),
    rate=st.floats(0.001, 0.5),
)
def test_step_has_the_bits_of_backprop_and_sgd(dataset, instructions, architecture, side, batch, threads, rate):
    kernels.choose(instructions)
    torch.set_num_threads(threads)
    cropped = dataset.center_crop(side)
    model, descent = make_model_and_descent(cropped, batch, **architecture)
    twin = DocumentCNN(image_size=side, **architecture)
    twin.load_state_dict(model.state_dict())
    optimizer = torch.optim.SGD(twin.parameters(), lr=rate)
    order = torch.randperm(120)
    descent.begin_epoch(order)
    for first in (0, 120 - batch):
        indices = order[first : first + batch]
        x, labels = normalize(cropped.train.images[indices], cropped), cropped.train.labels[indices]
        updates = backprop.backpropagate(twin, x, labels, eta=-1)
        for layer, w, b in zip(twin.layers_with_weights(), updates.weights, updates.biases, strict=True):
            layer.weight.grad, layer.bias.grad = w, b
        optimizer.step()
        stats = descent.step(first, rate)
        assert stats.cost == updates.cost.item()
        assert stats.num_correct == int((updates.probabilities.argmax(1) == labels).sum())
        assert torch.equal(stats.label_probs, updates.probabilities.gather(1, labels[:, None])[:, 0])
        assert all(map(torch.equal, model.parameters(), twin.parameters()))


def test_ties_count_as_the_first_class(dataset):
    model, descent = make_model_and_descent(dataset, 120, hidden=())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    descent.begin_epoch(torch.arange(120))
    stats = descent.step(0, 0.1)
    assert stats.num_correct == int((dataset.train.labels == 0).sum())
    torch.testing.assert_close(stats.label_probs, torch.full((120,), 0.1))


def test_step_invalidates_saved_weights(dataset):
    model, descent = make_model_and_descent(dataset)
    z = model(normalize(dataset.train.images[:3], dataset))
    descent.begin_epoch(torch.arange(120))
    assert descent.step(0, 0.1) is not None
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


def set_infinite_weight(model, descent):
    with torch.no_grad():
        model.conv1.weight[3, 2, 1, 0] = torch.inf


def set_nan_bias(model, descent):
    with torch.no_grad():
        model.dense2.bias[1] = torch.nan


def set_large_biases(model, descent):
    with torch.no_grad():
        model.dense2.bias[1] = 3e38
        model.dense2.bias[2] = -3e38


REFUSALS = {
    "infinite weight": set_infinite_weight,
    "nan bias": set_nan_bias,
    "infinite cost": set_large_biases,
    "other kernels": lambda model, descent: kernels.choose("off"),
    "moved tensor": lambda model, descent: setattr(model.conv0.weight, "data", model.conv0.weight.clone()),
}


@pytest.mark.parametrize("reason", REFUSALS)
def test_refused_step_leaves_the_weights_unchanged(dataset, reason):
    model, descent = make_model_and_descent(dataset, hidden=())
    descent.begin_epoch(torch.arange(120))
    assert descent.step(0, 0.1) is not None
    REFUSALS[reason](model, descent)
    before = [p.detach().clone() for p in model.parameters()]
    assert descent.step(20, 0.1) is None
    for p, unchanged in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(p.detach(), unchanged, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("label", [10, -1, -100])
def test_labels_of_no_class_refuse_the_epoch(dataset, label):
    labels = dataset.train.labels.clone()
    labels[7] = label
    model, descent = make_model_and_descent(replace(dataset, train=data.Split(dataset.train.images, labels)))
    before = [p.detach().clone() for p in model.parameters()]
    descent.begin_epoch(torch.arange(120))
    assert descent.step(20, 0.1) is None
    assert all(map(torch.equal, model.parameters(), before))
    descent.begin_epoch(torch.arange(20, 80))
    assert descent.step(0, 0.1) is not None, "the image with that label is not among these"


def test_indices_must_exist_and_batches_must_be_whole(dataset):
    _, descent = make_model_and_descent(dataset, 50)
    with pytest.raises(IndexError, match="numbers from 0 to 119, got numbers from 0 to 120"):
        descent.begin_epoch(torch.tensor([0, 120]))
    with pytest.raises(IndexError, match="numbers from 0 to 119, got numbers from -1 to 3"):
        descent.begin_epoch(torch.tensor([-1, 3]))
    descent.begin_epoch(torch.arange(120))
    assert [descent.step(first, 0.1) is None for first in (0, 50, 70, 71, 100, -1)] == [False] * 3 + [True] * 3


def test_unsupported_data_is_refused(dataset):
    model, descent = make_model_and_descent(dataset)
    images, labels = dataset.train.images, dataset.train.labels
    strided = torch.zeros(120, 1, 28, 56, dtype=torch.uint8)[..., ::2]
    for wrong in ((images.float(), labels), (images, labels.int()), (strided, labels), (images[:, 0], labels)):
        with pytest.raises(ValueError, match="images must be uint8"):
            Descent(descent.plan, list(model.parameters()), *wrong, 0.0, 1.0)
    unfused = DocumentCNN(fused=False)
    assert make_descent(unfused, dataset, 20) is None
    assert make_descent(model, dataset, 121) is None
    assert make_descent(model.double(), dataset, 20) is None
