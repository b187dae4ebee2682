"""Promise: a Sequential of layers that kernels compute runs as one program, and any other runs layer by layer."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import manualgrad as mg
from manualgrad import kernels
from manualgrad import nn as ours
from manualgrad.cpu import memory
from manualgrad.cpu.conv2d_grids import MAX_CHUNK
from manualgrad.network import guards
from manualgrad.network.cpu_blocks import MAX_REREAD_WEIGHTS
from manualgrad.network.layers import POOL, Conv, Dense, Flatten, NetworkSpec
from manualgrad.network.plan import get_plan
from tests.network.sequential_models import (
    gradients,
    images,
    layer_by_layer,
    make_native,
    make_nested,
    make_ours,
)

pytestmark = [
    pytest.mark.skipif(not kernels.available().instructions, reason=str(kernels.available())),
    pytest.mark.usefixtures("restore_kernels"),
]


def make_general(subgradient: float | None = None) -> nn.Sequential:
    """Padding, strides, dilation, other poolings and none, channels that fill no vector; ours with a subgradient."""
    conv, pool, relu, dense = nn.Conv2d, nn.MaxPool2d, nn.ReLU, nn.Linear
    if subgradient is not None:
        conv, pool, dense = ours.Conv2d, ours.MaxPool2d, ours.Dense

        def relu():
            return ours.ReLU(subgradient=subgradient)

    layers = [conv(2, 6, 3, padding=1), relu(), pool(3, 2, 1), conv(6, 20, 3, stride=2, padding=1), relu()]
    layers += [conv(20, 9, (1, 2), dilation=2), conv(9, 18, 3, padding=2), relu(), pool(2)]
    layers += [conv(18, 5, 1, stride=2), relu(), nn.Flatten() if subgradient is None else ours.Flatten()]
    return (nn.Sequential if subgradient is None else mg.Sequential)(*layers, dense(30, 7), relu(), dense(7, 5))


def make_large() -> nn.Sequential:
    """A padded convolution whose weight is too large to be read for each image, with ReLU and pooling."""
    first, second = nn.Conv2d(2, 120, 3, stride=4), nn.Conv2d(120, 130, 3, padding=1)
    return nn.Sequential(first, second, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(130 * 3 * 3, 5))


def make_vgg() -> nn.Sequential:
    """Pairs of padded convolutions: the first of each writes the border that the second one reads."""
    conv, relu, pool = nn.Conv2d, nn.ReLU, nn.MaxPool2d
    layers = [conv(2, 16, 3, padding=1), relu(), conv(16, 20, (3, 2), padding=(2, 1)), relu(), pool(2)]
    layers += [conv(20, 32, 3, stride=2), relu(), conv(32, 16, 2, padding=1), relu(), pool(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * 4 * 3, 5))


MODELS = {
    "pairs of padded convolutions": lambda: mg.from_torch(make_vgg()),
    "a large weight": lambda: mg.from_torch(make_large()),
    "any layers": lambda: mg.from_torch(make_general()),
    "any layers of manualgrad.nn": lambda: make_general(0.5),
    "layers of manualgrad.nn": make_ours,
    "nested": make_nested,
    "from_torch": lambda: mg.from_torch(make_native()),
    "from_torch, in place": lambda: mg.from_torch(make_native(inplace=True)),
}


@pytest.mark.parametrize("make", MODELS.values(), ids=list(MODELS))
@pytest.mark.parametrize("batch_size", [1, 37])
def test_one_program_computes_what_the_layers_compute(plan_calls, make, batch_size):
    torch.manual_seed(0)
    model, x = make(), images(batch_size)
    assert isinstance(model, mg.Sequential) and guards.explain(model, x) is None
    torch.set_num_threads(2)
    actual = gradients(model, x)
    assert plan_calls == ["forward", "backward"]
    unfused = layer_by_layer(model)
    one_by_one, exact = gradients(unfused, x), gradients(unfused.double(), x.double())
    assert len(plan_calls) == 2
    for ours_, theirs, right in zip(actual, one_by_one, exact, strict=True):
        scale = right.abs().max()
        assert (ours_ - right).abs().max() <= 4 * (theirs - right).abs().max() + 1e-5 * scale


def test_gradients_of_no_images_are_zeros(plan_calls, monkeypatch):
    """Memory that no kernel writes has NaN."""
    monkeypatch.setattr(memory, "new_workspace", lambda nbytes, *_: torch.full((nbytes,), 255, dtype=torch.uint8))
    z, *grads = gradients(make_general(0.5), images(0))
    assert plan_calls == ["forward", "backward"] and z.shape == (0, 5)
    assert all(torch.equal(grad, torch.zeros_like(grad)) for grad in grads)


def test_a_large_weight_is_multiplied_by_all_images_at_once():
    blocks = []
    for channels in (20, MAX_REREAD_WEIGHTS // (9 * 120) + 1):
        conv = Conv(channels, 120, (3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros", False, 0.0, POOL)
        plan = get_plan(NetworkSpec((120, 4, 4), (conv, Flatten(True), Dense(5, 4 * channels))), 2)
        blocks.append(type(plan.builder.blocks[0]).__name__)
    assert blocks == ["ConvReLUPoolBlock", "ConvBlock"]


def test_a_convolution_writes_the_border_that_the_next_one_reads():
    layers = [Conv(32, 3, (3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros", False, 0.0, None)]
    layers += [Conv(20, 32, (3, 2), (1, 1), (2, 1), (1, 1), 1, "zeros", False, 0.0, POOL)]
    builder = get_plan(NetworkSpec((3, 8, 9), (*layers, Flatten(True), Dense(5, 20 * 5 * 5))), 2).builder
    assert builder.blocks[0].out.memory_shape == (12, 11, 32)
    assert not {"x_padded1", "grad_x_padded1"} & {*builder.saved_buffers(), *builder.scratch_buffers()}


@pytest.mark.parametrize("make", MODELS.values(), ids=list(MODELS))
def test_whole_numbers_have_the_bits_of_the_layers(plan_calls, make):
    """No sum of whole numbers rounds, in any order; they have many ties and zeros."""
    torch.manual_seed(1)
    model, x = make(), images(9).round().clamp(-2, 2)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_((torch.rand_like(p) * 3 - 1.5).round() * (torch.rand_like(p) < 0.3))
    with torch.no_grad():
        actual = model(x)
        assert plan_calls == ["forward"] and actual.abs().max() < 2**24
        assert torch.equal(actual, layer_by_layer(model)(x))


def test_convolutions_have_the_bits_of_the_layers():
    """A dense layer adds in another order than ``torch.mm``; here its weight is 1, so that each sum has one term."""
    convs = [ours.ConvReLUMaxPool2d(c, 16, k) for c, k in ((2, 3), (16, (2, 3)), (16, 2))]
    x, identity = images(), ours.Dense(64, 64)
    model = mg.Sequential(*convs, ours.Flatten(), identity)
    with torch.no_grad():
        identity.weight.copy_(torch.eye(64))
        identity.bias.zero_()
        assert guards.explain(model, x) is None
        assert torch.equal(model(x), ours.Flatten()(nn.Sequential(*convs)(x)))


@pytest.mark.parametrize("seed", range(3))
def test_a_bias_gradient_of_many_windows_is_as_close_to_float64_as_natives(plan_calls, seed):
    torch.manual_seed(seed)
    native = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.Flatten(), nn.Linear(6 * 32 * 32, 5))
    x = torch.randn(9, 1, 32, 32)
    assert x.numel() > 10 * MAX_CHUNK  # as many sums, which are added then
    exact = gradients(copy.deepcopy(native).double(), x.double())[2]
    errors = [(gradients(model, x)[2] - exact).abs().max() for model in (mg.from_torch(native), native)]
    assert plan_calls == ["forward", "backward"]
    assert errors[0] <= 2 * errors[1] + 2 * torch.finfo(torch.float32).eps * exact.abs().max()


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
@pytest.mark.parametrize("place", ["x", "0.weight", "3.weight", "6.weight", "9.bias"])
def test_infinities_and_nans_spread_as_by_the_layers(value, place):
    torch.manual_seed(0)
    model, x = MODELS["any layers"](), images()
    with torch.no_grad():
        (x if place == "x" else model.get_parameter(place)).view(-1)[2] = value
    assert guards.explain(model, x) is None
    kernels.choose("off")
    expected = gradients(layer_by_layer(model), x)
    kernels.choose("auto")
    for actual, theirs in zip(gradients(model, x), expected, strict=True):
        assert torch.equal(actual.isnan(), theirs.isnan()) and torch.equal(actual.isinf(), theirs.isinf())


def test_a_plan_reports_numbers_whose_products_with_zeros_outside_the_image_it_leaves_out(plan_calls):
    layers = [nn.Conv2d(2, 20, 3, padding=1), nn.ReLU(), nn.Conv2d(20, 3, 3, 2, padding=1), nn.Flatten()]
    model, x = mg.from_torch(nn.Sequential(*layers, nn.Linear(48, 2))), torch.randn(4, 2, 8, 8)
    gradients(model, x)
    assert plan_calls == ["forward", "backward"]
    plan, parameters = model.find_plan(x)
    z, saved = plan.forward(x, parameters)
    assert plan.backward(torch.ones_like(z), x, saved, parameters[::2]) is not None
    assert plan.backward(torch.full_like(z, torch.inf), x, saved, parameters[::2]) is None
    with torch.no_grad():
        model[2].weight[2, 1, 0, 2] = torch.inf
    assert plan.forward(x, parameters) is None


def test_results_of_many_runs_have_the_same_bits():
    """Four threads on fewer cores are at different calls of a region: two tasks must not share scratch memory."""
    model, x = MODELS["any layers"](), images(37)
    torch.set_num_threads(4)
    first = gradients(model, x)
    for _ in range(30):
        assert all(map(torch.equal, gradients(model, x), first))


def test_second_derivatives_equal_those_of_the_layers():
    torch.manual_seed(0)
    for make in (make_ours, MODELS["from_torch"], MODELS["any layers"]):
        model, x, second = make(), images(3), []
        for m in (model, layer_by_layer(model)):
            parameters = list(m.parameters())
            first = torch.autograd.grad(m(x).square().sum(), parameters, create_graph=True)
            second.append(torch.autograd.grad(sum(g.square().sum() for g in first), parameters))
        for actual, expected in zip(*second, strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
