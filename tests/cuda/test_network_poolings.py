"""Promise: a network's plan for CUDA computes poolings of any windows and convolutions with dilation as layers do."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from manualgrad import Sequential, from_torch
from manualgrad import nn as ours
from manualgrad.network import guards
from manualgrad.network.cuda_graph import capture_step
from tests.cuda.test_network import COARSE, on, tiles  # noqa: F401
from tests.network.plan_models import gradients
from tests.network.sequential_models import layer_by_layer

NAN, INF = float("nan"), float("inf")
# Dilation with padding that is not the same on all sides; windows that overlap, with a border or cut off; both orders
# of the last images in memory.
NATIVE = (
    nn.Conv2d(2, 3, (2, 3), padding="same", dilation=2), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
    nn.Conv2d(3, 4, 2, padding=1, dilation=(1, 2)), nn.MaxPool2d((3, 2), 2, ceil_mode=True), nn.Flatten(),
    nn.Linear(16, 3),
)  # fmt: skip
OURS = (
    ours.Conv2d(2, 3, 3, stride=(1, 2), padding=2, dilation=(1, 2)), ours.ReLU(subgradient=0.5),
    ours.MaxPool2d(2, 1, dilation=(2, 1)), ours.Flatten(), ours.Dense(36, 3),
)  # fmt: skip
MODELS = {"native": nn.Sequential(*NATIVE), "ours": Sequential(*OURS)}


def with_whole_numbers(name: str) -> nn.Module:
    """A double precision copy of a model: sums of a few whole numbers have many ties and zeros."""
    model = copy.deepcopy(MODELS[name]).double()
    for parameter in model.parameters():
        parameter.data = torch.randint(-1, 2, parameter.shape).double()
    return model


@pytest.mark.parametrize(
    ("name", "pixel", "weight", "split"),
    [
        ("native", 1, 1, 1),
        ("ours", 1, 1, 1),
        pytest.param("native", 1, 1, 2, marks=pytest.mark.slow),
        pytest.param("native", NAN, 1, 1, marks=pytest.mark.slow),
        pytest.param("ours", INF, 1, 1, marks=pytest.mark.slow),
        pytest.param(
            "native", 1, -INF, 1, marks=pytest.mark.slow
        ),  # where its tap has no output the gradient is finite
    ],
)
def test_gradients_of_whole_numbers_are_those_of_the_layers(
    tiles, kernel_device, launches, name, pixel, weight, split  # noqa: F811
):  # fmt: skip
    tiles["tiles"] = replace(COARSE, conv_split=split)
    torch.manual_seed(1)
    reference = with_whole_numbers(name)
    x, g = torch.randint(-1, 2, (2, 2, 6, 5)).double(), torch.randint(-1, 2, (2, 3)).double()
    x[0, 1, 2, 3] = pixel
    if weight == -INF:
        with torch.no_grad():
            reference[0].bias += 10  # no pixel is 0
            reference[3].weight[1, 2, 1, 1] = weight
    is_native = name == "native"
    model = from_torch(reference).float() if is_native else copy.deepcopy(reference).float()
    model, x_on_device, g_on_device = on(kernel_device, model, x.float(), g.float())
    assert guards.explain(model, x_on_device) is None
    actual = gradients(model, x_on_device, g_on_device)
    expected = gradients(reference if is_native else layer_by_layer(reference), x, g)
    for tensor, exact in zip(actual, expected, strict=True):
        torch.testing.assert_close(tensor.double().cpu(), exact, rtol=0, atol=0, equal_nan=True)
    assert launches.count("max_pool2d_forward") == launches.count("max_pool2d_backward") == 1 + is_native


def test_a_captured_step_of_such_a_network_has_the_gradients_of_the_layers(tiles, kernel_device):  # noqa: F811
    torch.manual_seed(1)
    model, x, labels = on(
        kernel_device, copy.deepcopy(MODELS["ours"]), torch.randn(2, 2, 6, 5), torch.tensor([2, 0])
    )  # fmt: skip
    actual = capture_step(model, x, labels, update=False)(x, labels, -1.0)
    reference = layer_by_layer(model).double()
    loss = nn.functional.cross_entropy(reference(x.double()), labels)
    expected = [loss.detach(), *torch.autograd.grad(loss, list(reference.parameters()))]
    for tensor, exact in zip([actual.loss, *actual.steps], expected, strict=True):
        torch.testing.assert_close(tensor.double(), exact, rtol=1e-5, atol=1e-6)  # sums of 36 numbers in float32
