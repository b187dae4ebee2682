"""Promise: a Sequential of layers that kernels compute runs as one program, and any other runs layer by layer."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import manualgrad as mg
from manualgrad import kernels
from manualgrad import nn as ours
from manualgrad.network import cpu_conv_block, guards
from manualgrad.network.plan import Plan

pytestmark = [
    pytest.mark.skipif(not kernels.available().instructions, reason=str(kernels.available())),
    pytest.mark.usefixtures("restore_kernels"),
]


def convolutions() -> list[nn.Module]:
    """Three convolutions, for images of 30×28."""
    fused = [ours.ConvReLUMaxPool2d(16, 16, (2, 3), subgradient=1)]
    return [ours.Conv2d(2, 16, 3), ours.ReLU(), ours.MaxPool2d(), *fused, ours.Conv2d(16, 32, 2), ours.ReLU(),
            ours.MaxPool2d(2, 2)]  # fmt: skip


def dense_layers() -> list[nn.Module]:
    return [ours.Dense(128, 20), ours.ReLU(), ours.Dense(20, 9), ours.ReLU(subgradient=0), ours.Dense(9, 5)]


def make_ours() -> mg.Sequential:
    return mg.Sequential(*convolutions(), ours.Flatten(), *dense_layers())


def make_nested() -> mg.Sequential:
    return mg.Sequential(nn.Sequential(*convolutions()), mg.Sequential(ours.Flatten(), *dense_layers()))


def make_native(inplace: bool = False) -> nn.Sequential:
    convs = [layer for c_in, c_out in ((2, 16), (16, 16), (16, 32))
             for layer in (nn.Conv2d(c_in, c_out, 2), nn.ReLU(inplace), nn.MaxPool2d(2))]  # fmt: skip
    dense = nn.Linear(32 * 2 * 2, 20), nn.ReLU(inplace), nn.Linear(20, 9), nn.ReLU(inplace), nn.Linear(9, 5)
    return nn.Sequential(*convs, nn.Flatten(), *dense)


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


MODELS = {
    "any layers": lambda: mg.from_torch(make_general()),
    "any layers of manualgrad.nn": lambda: make_general(0.5),
    "layers of manualgrad.nn": make_ours,
    "nested": make_nested,
    "from_torch": lambda: mg.from_torch(make_native()),
    "from_torch, in place": lambda: mg.from_torch(make_native(inplace=True)),
}


def images(batch_size: int = 5) -> torch.Tensor:
    return torch.randn(batch_size, 2, 30, 28)


def gradients(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    z = model(x)
    weights = torch.linspace(-1, 1, z.numel(), dtype=x.dtype).view_as(z)
    return [z.detach(), *torch.autograd.grad((z * weights).sum(), list(model.parameters()))]


def layer_by_layer(model: nn.Module) -> nn.Module:
    """A copy whose layers run one by one."""
    copied = copy.deepcopy(model)
    copied.__class__ = nn.Sequential
    return copied


@pytest.fixture
def plan_calls(monkeypatch) -> list[str]:
    """Names of the methods of Plan that ran."""
    calls: list[str] = []
    for name in ("forward", "backward"):
        original = getattr(Plan, name)

        def recorded(*arguments, original=original, name=name):
            calls.append(name)
            return original(*arguments)

        monkeypatch.setattr(Plan, name, recorded)
    return calls


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
    assert x.numel() > 2 * cpu_conv_block.SUM_WINDOWS  # three sums, which are added then
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


def test_results_of_many_runs_have_the_same_bits():
    """Four threads on fewer cores are at different calls of a region: two tasks must not share scratch memory."""
    model, x = MODELS["any layers"](), images(37)
    torch.set_num_threads(4)
    first = gradients(model, x)
    for _ in range(30):
        assert all(map(torch.equal, gradients(model, x), first))


def test_kernels_explain_says_what_ran():
    model, x = make_ours(), images()
    assert str(kernels.explain(model, x)) == "Sequential(float32 (5, 2, 30, 28)): one program"
    hook_layer(model)
    records = str(kernels.explain(model, x)).splitlines()
    assert records[0] == "Sequential(float32 (5, 2, 30, 28)): its layers, one by one, since a layer has a hook"
    assert len(records) > 1


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


def hook_layer(model):
    model[0].register_forward_hook(lambda *_: None)


def hook_inner_layer(model):
    model[1][1].register_forward_hook(lambda *_: None)


REASONS = {
    "layer without a kernel": (lambda m: m.append(nn.Tanh()), "no kernel computes Tanh"),
    "channels": (lambda m: m.__setitem__(0, ours.Conv2d(2, 12, 3)), "a convolution of 16 channels does not fit"),
    "groups": (lambda m: m.__setitem__(0, ours.Conv2d(2, 16, 3, groups=2)), "a convolution with groups"),
    "large windows": (lambda m: m.__setitem__(2, ours.MaxPool2d(17)), "windows of more than 256 places"),
    "ReLU twice": (lambda m: m.insert(1, ours.ReLU()), "no kernel computes ReLU after Conv"),
    "no flatten": (lambda m: m.__delitem__(7), "a dense layer of 128 features does not fit"),
    "no convolution": (lambda m: [m.__delitem__(0) for _ in range(8)], "the first layer is no convolution"),
    "no logits": (lambda m: m.append(ours.ReLU()), "the last layer is no dense layer"),
    "hook": (hook_layer, "a layer has a hook"),
    "frozen": (lambda m: m[0].requires_grad_(False), "a parameter is frozen"),
    "dtype": (lambda m: m.double(), "no plain float32 tensor"),
    "no bias": (lambda m: setattr(m[0], "bias", None), "has no weight or bias of its own"),
    "patched forward": (lambda m: setattr(m[1], "forward", m[4].forward), "the forward of ReLU was replaced"),
    "kernels off": (lambda m: kernels.choose("off"), "kernels are switched off"),
    "empty": (lambda m: [m.__delitem__(0) for _ in range(len(m))], "there are no layers"),
}


@pytest.mark.parametrize("change", REASONS)
def test_other_lists_run_layer_by_layer_and_say_why(plan_calls, change):
    model, x = make_ours(), images()
    apply, reason = REASONS[change]
    apply(model)
    assert reason in guards.explain(model, x)
    shapes_differ = "no flatten", "no convolution", "channels", "large windows"
    if change not in (*shapes_differ, "dtype", "patched forward"):
        model(x)
    assert plan_calls == []


def test_other_calls_run_layer_by_layer_and_say_why(plan_calls):
    model, x = make_ours(), images()
    assert "no batch of images" in guards.explain(model, x[0])
    assert "input needs a gradient" in guards.explain(model, x.clone().requires_grad_())
    assert "does not fit" in guards.explain(model, images()[:, :1])
    assert "must fit into the padded input" in guards.explain(model, images()[:, :, :3])
    assert "no tensor" in guards.explain(model, None)
    with torch.autocast("cpu", torch.bfloat16):
        assert "autocast" in guards.explain(model, x)
        model(x)
    torch.func.vmap(model)(x.unsqueeze(1))
    assert plan_calls == []


def test_nested_sequentials_run_as_one_plan(plan_calls):
    model, x = make_nested(), images()
    model(x)
    assert plan_calls == ["forward"]
    hook_inner_layer(model)
    assert guards.explain(model, x) == "a layer has a hook"
    model = make_nested()
    model[0].register_forward_hook(lambda *_: None)
    assert guards.explain(model, x) == "a layer has a hook"


def test_a_hook_of_the_model_runs_and_a_shared_layer_has_both_gradients(plan_calls):
    model, hook_calls = make_ours(), []
    model.register_forward_hook(lambda *_: hook_calls.append(1))
    model[10] = ours.Dense(20, 20)
    model[12] = ours.Dense(20, 5)
    model.insert(11, model[9])
    model.insert(12, model[10])
    x = images()
    actual, expected = gradients(model, x), gradients(layer_by_layer(model), x)
    assert plan_calls == ["forward", "backward"] and hook_calls
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_it_is_an_nn_sequential_in_every_other_way():
    model, x = make_ours(), images()
    assert isinstance(model, nn.Sequential) and type(model[:3]) is mg.Sequential and len(model[:3]) == 3
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), mg.Sequential(*model)):
        assert torch.equal(other(x), model(x))
    plain = nn.Sequential(*copy.deepcopy(model))
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), plain(x))
    assert torch.equal(torch.func.functional_call(model, dict(model.named_parameters()), (x,)), model(x))


def test_from_torch_and_back():
    native, x = make_native(), images()
    converted = mg.from_torch(native)
    assert type(converted) is mg.Sequential and list(converted.state_dict()) == list(native.state_dict())
    torch.testing.assert_close(converted(x), native(x), rtol=1e-4, atol=1e-5)
    back = mg.to_torch(converted)
    assert type(back) is nn.Sequential and torch.equal(back(x), native(x))
    for left in (native[9:], nn.Sequential(nn.Conv2d(2, 16, 2), nn.Tanh(), nn.Linear(16, 2))):
        assert type(mg.from_torch(left)) is nn.Sequential, "no plan could serve it, and there is no pair"

    class Subclass(nn.Sequential):
        pass

    assert type(mg.from_torch(Subclass(*native))) is Subclass
