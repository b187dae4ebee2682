"""Promise: a Sequential that kernels cannot run as one program runs layer by layer, and says why."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import manualgrad as mg
from manualgrad import kernels
from manualgrad import nn as ours
from manualgrad.network import guards
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


def test_kernels_explain_says_what_ran():
    model, x = make_ours(), images()
    assert str(kernels.explain(model, x)) == "Sequential(float32 (5, 2, 30, 28)): one program"
    hook_layer(model)
    records = str(kernels.explain(model, x)).splitlines()
    assert records[0] == "Sequential(float32 (5, 2, 30, 28)): its layers, one by one, since a layer has a hook"
    assert len(records) > 1


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
    for left in (native[13:], nn.Sequential(nn.Conv2d(2, 16, 2), nn.Tanh(), nn.Linear(16, 2))):
        assert type(mg.from_torch(left)) is nn.Sequential, "no plan could serve it, and there is no chain"

    class Subclass(nn.Sequential):
        pass

    assert type(mg.from_torch(Subclass(*native))) is Subclass
