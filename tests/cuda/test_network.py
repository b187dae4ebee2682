"""Promise: a network's kernels for CUDA compute what its layers compute, in few launches, or say why they do not."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import nn

from manualgrad import DocumentCNN, Sequential, backprop, from_torch, kernels, to_torch
from manualgrad import nn as ours
from manualgrad.cuda.launch import CUDA
from manualgrad.network import cuda_blocks, cuda_plan, cuda_tiles, guards
from manualgrad.network.planners import PLANNERS
from tests.cuda.conftest import CountingLauncher
from tests.network.plan_models import gradients, make_model

# Fewer and larger programs than a GPU needs: the interpreter takes its time for each.
COARSE = replace(
    cuda_tiles.SMALL, image_windows=32, windows=16, dense=(16, 32, 2), head=(16, 64, 128), columns=(64, 2),
    grad_parts=2, first_parts=2, first_windows=32, reduce=(1024, 4),
)  # fmt: skip
TINY = {"image_size": 12, "channels": (4, 5), "kernel_size": 3, "hidden": (6,)}
FUSED_STEP = [
    "prepare", "conv_relu_pool_forward", "conv_relu_pool_forward", "dense_forward", "head", "backward",
    "first_grad_weight", "reduce",
]  # fmt: skip
NAN, INF = float("nan"), float("inf")


@pytest.fixture
def tiles(monkeypatch, kernel_device, launches) -> Iterator[dict[str, cuda_tiles.Tiles]]:
    """Plans for CUDA on ``kernel_device``, with the tiles under "tiles"; ``launches`` has the kernels' names."""
    chosen = {"tiles": COARSE}
    launcher = CountingLauncher()
    launcher.names = launches
    monkeypatch.setattr(cuda_blocks, "tiles_for", lambda _: chosen["tiles"])
    monkeypatch.setattr(cuda_plan.launch, "current_launcher", lambda: launcher if not CUDA.why_none() else None)

    def get_plan(network, batch_size):
        return CUDA.why_none() or cuda_plan._cached_plan.__wrapped__(network, batch_size)

    monkeypatch.setitem(PLANNERS, kernel_device, get_plan)
    yield chosen
    kernels.choose("auto")


def on(device: str, model: DocumentCNN, *tensors: torch.Tensor) -> tuple:
    return model.to(device), *(tensor.to(device) for tensor in tensors)


def by_formulas(model: DocumentCNN, x: torch.Tensor, labels: torch.Tensor, dtype=torch.float64) -> list[torch.Tensor]:
    """The loss and its gradients, layer by layer."""
    model = copy.deepcopy(model).to(dtype)
    model.fused = False
    loss = model.cost(x.to(dtype), labels)
    return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]


@pytest.mark.parametrize(
    ("architecture", "tiles_changed"),
    [
        (TINY, {}),
        (TINY, {"first_taps": 4, "conv_split": 2}),  # columns in parts, of which the last have no tap
        ({"image_size": (11, 9), "channels": (4,), "kernel_size": (3, 2), "hidden": (5, 6), "in_channels": 2}, {}),
        pytest.param(
            {"image_size": (12, 13), "channels": (17, 3), "kernel_size": (2, 3), "hidden": (), "classes": 3}, {},
            marks=pytest.mark.slow,
        ),
        pytest.param({**TINY, "subgradient": 0.0, "classes": 17}, {"dense_parts": 2}, marks=pytest.mark.slow),
        pytest.param(
            {"image_size": 26, "channels": (3, 4, 36), "kernel_size": 3, "hidden": (7,), "subgradient": 1.0}, {},
            marks=pytest.mark.slow,
        ),
        pytest.param({**TINY, "channels": (4, 66), "hidden": (130,)}, {}, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_whole_numbers_give_the_gradients_exactly(tiles, kernel_device, launches, architecture, tiles_changed):
    """Many ties and zeros: of windows, of ReLU; odd sizes; one kernel for the end of the network, and several."""
    tiles["tiles"] = replace(COARSE, **tiles_changed)
    model, x, _ = make_model(3, whole_numbers=True, **architecture)
    g = torch.randint(-1, 2, (3, model.classes)).float()
    model, x, g = on(kernel_device, model, x, g)
    assert guards.explain(model, x) is None
    exact = copy.deepcopy(model).double()
    exact.fused = False
    for actual, expected in zip(gradients(model, x, g), gradients(exact, x.double(), g.double()), strict=True):
        assert torch.equal(actual.double(), expected)
    assert launches.count("conv_relu_pool_forward") == model.num_conv_blocks


NETWORKS = {
    "LeNet-5": (  # padding, dense layers behind torch.nn.Flatten
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3),
    ),
    "without pooling": (
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 4, 3, stride=(2, 1), padding=(1, 0)), nn.ReLU(),
        nn.Flatten(), nn.Linear(48, 3),
    ),
    "without ReLU": (
        nn.Conv2d(1, 3, 2), nn.MaxPool2d(2), nn.Conv2d(3, 3, (1, 2), padding="same"), nn.Flatten(), nn.Linear(12, 3)
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "split", "weight"),
    [
        ("LeNet-5", 1, 1),
        *[pytest.param("without pooling", *case, marks=pytest.mark.slow) for case in ((1, 1), (2, 1), (1, -INF))],
        pytest.param("without ReLU", 1, 1, marks=pytest.mark.slow),
    ],
)
def test_converted_networks_have_native_gradients_of_whole_numbers(tiles, kernel_device, name, split, weight):
    """An infinite weight makes NaN of the gradients of one input channel; the others are computed without it."""
    tiles["tiles"] = replace(COARSE, conv_split=split)
    torch.manual_seed(0)
    native = copy.deepcopy(nn.Sequential(*NETWORKS[name])).double()
    with torch.no_grad():
        for parameter in native.parameters():
            parameter.copy_(torch.randint(-1, 2, parameter.shape))
        if weight == -INF:  # the output channel is inactive; no number of the input channel is 0
            native[0].bias += 10
            native[2].weight[1, 2, 0, 0] = weight
    x, g = torch.randint(-1, 2, (2, 1, 6, 6)).double(), torch.randint(-1, 2, (2, 3)).double()
    converted = from_torch(native).float()
    converted, on_device, g_on_device = on(kernel_device, converted, x.float(), g.float())
    assert guards.explain(converted, on_device) is None
    for actual, expected in zip(gradients(converted, on_device, g_on_device), gradients(native, x, g), strict=True):
        torch.testing.assert_close(actual.double().cpu(), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.slow
def test_gradients_of_the_loss_are_as_accurate_as_native_ones(tiles, kernel_device, launches):
    model, x, labels = on(kernel_device, *make_model(2, image_size=12, channels=(4, 5), kernel_size=3, hidden=(6,)))
    loss = model.cost(x, labels)
    assert launches == FUSED_STEP
    actual = [loss, *torch.autograd.grad(loss, list(model.parameters()))]
    assert launches == FUSED_STEP
    exact = by_formulas(model, x, labels)
    native_model = to_torch(model)
    native_loss = torch.nn.functional.cross_entropy(native_model(x), labels)
    native = [native_loss, *torch.autograd.grad(native_loss, list(native_model.parameters()))]
    for ours_, theirs, reference in zip(actual, native, exact, strict=True):
        if theirs.dim() == 4:
            theirs = theirs.flip(2, 3)
        if theirs.dim() == 2 and theirs.shape[1] == 20:  # torch.nn.Flatten's order of the columns
            theirs = theirs.unflatten(1, (5, 2, 2)).permute(0, 2, 3, 1).flatten(1)
        error, native_error = ((t.double() - reference).norm() for t in (ours_, theirs))
        assert error <= 2 * native_error + 2 * 2**-23 * reference.norm()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x", INF),
        pytest.param("conv0.weight", NAN, marks=pytest.mark.slow),
        pytest.param("conv1.weight", NAN, marks=pytest.mark.slow),
        pytest.param("dense2.weight", -INF, marks=pytest.mark.slow),
    ],
)
def test_infinities_and_nans_spread_as_by_the_formulas(tiles, kernel_device, name, value):
    model, x, _ = make_model(3, **TINY)
    with torch.no_grad():
        (x if name == "x" else model.get_parameter(name)).view(-1)[3] = value
    model, x, g = on(kernel_device, model, x, torch.ones(3, 10))
    formulas = copy.deepcopy(model)
    formulas.fused = False
    for actual, expected in zip(gradients(model, x, g), gradients(formulas, x, g), strict=True):
        assert torch.equal(actual.isnan(), expected.isnan())
        assert torch.equal(actual.isinf(), expected.isinf())


def test_an_infinite_weight_is_not_multiplied_by_a_gradient_outside_of_the_output(tiles, kernel_device):
    """Its channel is inactive, so the loss is finite; its tap has no output for pixels at one side of an image."""
    model, x, labels = make_model(2, **TINY)
    with torch.no_grad():
        model.conv0.bias += 10  # no input of the channel is 0
        model.conv1.weight[1, 2, 0, 0] = -INF
    model, x, labels = on(kernel_device, model, x, labels)
    actual = backprop.backpropagate(model, x, labels).deltas[0]
    expected = backprop.backpropagate(copy.deepcopy(model).double(), x.double(), labels).deltas[0]
    assert expected.isnan().any() and expected.isfinite().any()
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("hidden", [(6,), pytest.param((5, 6), marks=pytest.mark.slow)])
def test_a_step_of_descent_adds_its_updates_in_the_same_launches(tiles, kernel_device, launches, hidden):
    model, x, labels = on(kernel_device, *make_model(3, **{**TINY, "hidden": hidden}))
    labels[1] = -100  # does not count
    before = copy.deepcopy(model)
    updates = backprop.descend(model, x, labels, 0.5)
    assert (launches == FUSED_STEP) == (hidden == (6,))
    layers = zip(before.layers_with_weights(), model.layers_with_weights(), strict=True)
    for (old, new), delta_w, delta_b in zip(layers, updates.weights, updates.biases, strict=True):
        assert torch.equal(new.weight, old.weight + delta_w)
        assert torch.equal(new.bias, old.bias + delta_b)
    exact = backprop.backpropagate(copy.deepcopy(before).double(), x.double(), labels, 0.5)
    pairs = [(updates.weights, exact.weights), (updates.deltas, exact.deltas)]
    pairs.append(([layer.x for layer in updates.layers], [layer.x for layer in exact.layers]))
    for actual, expected in pairs:
        for ours_, reference in zip(actual, expected, strict=True):
            torch.testing.assert_close(ours_.double(), reference, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_label_of_no_class_gives_nan(tiles, kernel_device):
    model, x, labels = on(kernel_device, *make_model(2, **TINY))
    labels[1] = 10
    updates = backprop.backpropagate(model, x, labels)
    assert updates.cost.isnan()
    assert updates.weights[-1].isnan().any()


def test_a_batch_of_no_images_has_gradients_of_zeros(tiles, kernel_device):
    model, x, _ = on(kernel_device, *make_model(0, **TINY))
    z, *grads = gradients(model, x, torch.zeros(0, 10, device=kernel_device))
    assert z.shape == (0, 10)
    assert not any(grad.any() for grad in grads)


def test_what_the_kernels_do_not_serve_has_its_reason(tiles, kernel_device):
    def reason(model, x):
        return guards.explain(model.to(kernel_device), x.to(kernel_device))

    x = torch.randn(2, 1, 12, 12)
    in_groups = Sequential(ours.Conv2d(1, 4, 3), ours.Conv2d(4, 4, 3, groups=2), ours.Flatten(), ours.Dense(256, 10))
    assert "groups" in reason(in_groups, x)
    large = Sequential(ours.Conv2d(1, 4, 3, padding=9), ours.MaxPool2d(17), ours.Flatten(), ours.Dense(4, 10))
    assert "windows of more than 256 places" in reason(large, x)
    assert "1024 classes" in reason(DocumentCNN(image_size=12, kernel_size=3, channels=(4,), classes=1025), x)
    assert "float32" in reason(DocumentCNN(**TINY).double(), x.double())
    huge = torch.empty(1, 1, 12, 12, device=kernel_device).expand(2**24, -1, -1, -1)
    assert "32-bit offsets" in reason(DocumentCNN(**TINY), huge)
    kernels.choose("off")
    assert reason(DocumentCNN(**TINY), x) == "kernels are switched off"
