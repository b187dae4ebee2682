"""Promise: converted layers, one behind the other, are computed together where nothing shows the difference."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

import manualgrad as mg
from manualgrad import kernels
from manualgrad.interop import layers
from tests.network.chain_models import X, assert_equal, make_native, num_fused, one_by_one


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_pair_equals_its_layers(memory_format, inplace, dtype):
    model = mg.from_torch(make_native(inplace)).to(dtype, memory_format=memory_format)
    assert_equal(model, X.to(dtype, memory_format=memory_format))
    assert_equal(model.eval(), X.to(dtype))
    assert_equal(mg.from_torch(make_native(inplace, "reflect")))
    assert torch.isnan(model(torch.full_like(X, torch.nan, dtype=dtype))).all()


@pytest.mark.parametrize("frozen", [("0.weight",), ("0.bias",), ("0.weight", "0.bias"), ("3.weight", "5.bias")])
def test_frozen_parameters_and_inputs_without_gradients(frozen):
    model = mg.from_torch(make_native())
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    assert_equal(model)
    model(X).sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is None} == set(frozen)


def test_a_layer_called_twice_has_the_sum_of_the_gradients():
    conv, relu = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()
    model = mg.from_torch(nn.Sequential(conv, relu, conv, relu))
    assert model[0] is model[2] and len(list(model.parameters())) == 2
    assert_equal(model)


def add_hook(model: nn.Module, register: str) -> None:
    getattr(model[0], register)(lambda *_: None)


class Subclass(layers.Conv2d):
    """A subclass with the same forward."""


OBSERVERS = {
    "forward hook": lambda model: add_hook(model, "register_forward_hook"),
    "pre-hook": lambda model: add_hook(model, "register_forward_pre_hook"),
    "backward hook": lambda model: add_hook(model, "register_full_backward_hook"),
    "hook of the ReLU": lambda model: model[1].register_forward_hook(lambda *_: None),
    "forward of an instance": lambda model: setattr(model[0], "forward", model[0].forward),
    "subclass": lambda model: setattr(model[0], "__class__", Subclass),
    "pruned": lambda model: prune.identity(model[0], "weight"),
    "parametrized": lambda model: parametrize.register_parametrization(model[0], "weight", nn.Identity()),
    "compiled in place": lambda model: model[0].compile(backend="eager"),
}


SLOW = {"compiled in place"}  # it imports the compiler


@pytest.mark.parametrize(
    ("name", "inplace"),
    [
        pytest.param(name, inplace, marks=pytest.mark.slow if name in SLOW else ())
        for name in OBSERVERS
        for inplace in (False, True)
        if not (inplace and name == "backward hook")  # PyTorch allows no in-place change of what such a hook has seen
    ],
)
def test_layers_that_are_observed_run_one_by_one(name, inplace):
    model = mg.from_torch(make_native(inplace))
    assert num_fused(model) == 2
    OBSERVERS[name](model)
    # the other pair is not observed; nor are the first ReLU and the pooling, if the ReLU leaves what is seen as it is
    assert num_fused(model) == (1 if inplace or name == "hook of the ReLU" else 2)
    assert torch.equal(model(X), mg.from_torch(make_native(inplace))(X))


class OwnSubclass(mg.nn.Conv2d):
    """A subclass with the same forward."""


OWN_OBSERVERS = {
    "forward hook": OBSERVERS["forward hook"],
    "hook of the ReLU": OBSERVERS["hook of the ReLU"],
    "forward of an instance": OBSERVERS["forward of an instance"],
    "subclass": lambda model: setattr(model[0], "__class__", OwnSubclass),
    "parametrized": OBSERVERS["parametrized"],
}


PAIR = ["conv2d_forward_nchw", "relu_forward"]


@pytest.mark.parametrize("name", [None, *OWN_OBSERVERS])
def test_a_convolution_of_ours_and_its_relu_follow_the_same_rules(name):
    """On the CPU no kernel stores the sign of z, and the pair is its layers."""
    conv, relu = mg.nn.Conv2d(3, 3, 3, padding=1, groups=3), mg.nn.ReLU()
    model = mg.Sequential(conv, relu, conv, relu, mg.nn.MaxPool2d())
    if name:
        OWN_OBSERVERS[name](model)
    assert_equal(model, X.round(), fused=0 if name else 2)
    expected = ["conv2d_forward_nchw", "relu_forward"] * 2
    assert [record.formula for record in kernels.explain(model, X).records if "forward" in record.formula][
        :4
    ] == expected


def test_each_layer_of_a_chain_is_looked_at():
    model = mg.from_torch(make_native())
    handle = model[2].register_forward_hook(lambda *_: None)
    assert num_fused(model) == 2 and num_fused(model[:3]) == 1 and num_fused(model[1:3]) == 0, "the first two are one"
    handle.remove()
    model[2].return_indices = True
    assert num_fused(model[:3]) == 1 and model[:3](X)[1].dtype == torch.int64
    model[2].return_indices, model[2].stride = False, 1
    assert num_fused(model[:3]) == 1 and num_fused(model[1:3]) == 0, "there are as many maxima as pixels"


def test_a_relu_in_place_before_pooling_changes_an_input_that_somebody_else_has():
    model, x = mg.from_torch(nn.Sequential(nn.ReLU(inplace=True), nn.MaxPool2d(2))), X.clone()
    assert num_fused(model, x) == 0 and x.min() == 0
    model = mg.from_torch(nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)))
    assert num_fused(model, X) == 1 and X.min() < 0


def test_hooks_of_all_modules_and_of_the_whole_model():
    model, calls = mg.from_torch(make_native()), []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: calls.append(type(module)))
    try:
        model(X)
    finally:
        handle.remove()
    assert calls[:2] == [layers.Conv2d, layers.ReLU] and len(calls) == 9
    model.register_forward_hook(lambda module, args, output: calls.append(output.shape))
    assert num_fused(model) == 2 and calls[9:] == [(2, 4, 2, 2)]


def test_slices_states_copies_and_the_way_back():
    native = make_native()
    model = mg.from_torch(native)
    assert type(model) is mg.Sequential and list(model.state_dict()) == list(native.state_dict())
    assert torch.equal(model[1](model[0](X)), model[:2](X)) and num_fused(model[:2]) == 1 and num_fused(model[0]) == 0
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert num_fused(other) == 2
    back = mg.to_torch(model)
    assert [type(layer) for layer in back.modules()] == [type(layer) for layer in native.modules()]


def test_modes_that_see_operators_get_the_layers():
    model = mg.from_torch(make_native()).eval()
    expected = model(X)
    assert sum(node.op == "call_module" for node in torch.fx.symbolic_trace(model).graph.nodes) == 8
    for call in (torch.vmap(lambda x: model(x[None])[0]), torch.jit.trace(model, X)):
        torch.testing.assert_close(call(X), expected)
    assert num_fused(torch.vmap(lambda x: model(x[None])[0])) == 0
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(X), one_by_one(model)(X)) and model[:2](X).dtype == torch.bfloat16
    checkpointed = torch.utils.checkpoint.checkpoint(model, X.clone().requires_grad_(), use_reentrant=False)
    torch.testing.assert_close(checkpointed, expected)
    checkpointed.sum().backward()


@pytest.mark.skipif(not kernels.available().instructions, reason=str(kernels.available()))
def test_the_kernel_computes_the_pairs_of_torchvision_models():
    models = pytest.importorskip("torchvision").models
    x = torch.randn(1, 3, 32, 32)
    for make, pairs, chains in ((models.vgg11, 3, 8), (models.squeezenet1_1, 25, 26)):  # vgg11 has five poolings
        model = mg.from_torch(make())
        model = model.features if chains == 8 else model
        records = [r for r in kernels.explain(model, x).records if r.formula == "conv_relu_forward"]
        assert [r.computed_by for r in records] == ["cpu kernel"] * pairs
        assert num_fused(model, x) == chains
