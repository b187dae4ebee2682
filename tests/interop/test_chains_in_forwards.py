"""Promise: chains of layers that a forward calls are computed together where nothing shows the difference."""

from __future__ import annotations

import copy
import pickle
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

import manualgrad as mg
from manualgrad.interop import layers
from manualgrad.network import call_chains
from tests.interop import chained_models
from tests.network.chain_models import num_fused, run

X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
NUM_CHAINS = {"Nested": 3, "Statements": 3, "Returned": 1}
NUM_FUNCTIONAL_CHAINS = {"Functional": 7, "Mnist": 3, **NUM_CHAINS}


def make(name: str, *args: bool) -> nn.Module:
    return getattr(chained_models, name)(*args)


def assert_equal_one_by_one(model: nn.Module, x: Tensor) -> None:
    """Results, gradients and buffers are those of the layers one by one, bit for bit."""
    other = copy.deepcopy(model)
    torch.manual_seed(1)
    actual = run(model, x)
    torch.manual_seed(1)
    with patch.object(call_chains, "CHAINS", set()):
        expected = run(other, x)
    for a, e in zip([*actual, *model.buffers()], [*expected, *other.buffers()], strict=True):
        assert a.stride() == e.stride() and torch.equal(a, e)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("name", NUM_CHAINS)
def test_layers(name, inplace, dtype):
    native = make(name, inplace)
    model = mg.from_torch(native).to(dtype)
    torch.testing.assert_close(model.eval()(X.to(dtype)), copy.deepcopy(native).to(dtype).eval()(X.to(dtype)))
    assert num_fused(model, X.to(dtype)) == NUM_CHAINS[name]
    for mode in (True, False):
        assert_equal_one_by_one(model.train(mode), X.to(dtype))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", NUM_FUNCTIONAL_CHAINS)
def test_functions(name, memory_format):
    native = make(name).to(memory_format=memory_format)
    model, x = mg.from_torch(native, functional=True, report=True)[0], X.to(memory_format=memory_format)
    torch.testing.assert_close(model.eval()(x), native.eval()(x))
    assert num_fused(model, x) == NUM_FUNCTIONAL_CHAINS[name]
    for mode in (True, False):
        assert_equal_one_by_one(model.train(mode), x)


@pytest.mark.parametrize("name", ["Skip", "Alias", "Closure", "Caught"])
def test_results_that_are_used_again_are_computed(name):
    for inplace in (False, True):
        native = make(name, inplace)
        model = mg.from_torch(native)
        assert num_fused(model, X) == 0
        torch.testing.assert_close(model(X), native(X))
    model.pool.kernel_size = 40
    torch.testing.assert_close(model(X), native(X) if name != "Caught" else model.conv(X).relu())


OBSERVERS = {
    "forward hook": lambda m, noted: m.conv.register_forward_hook(lambda *args: noted.append(args[2])),
    "pre-hook": lambda m, noted: m.conv.register_forward_pre_hook(lambda *args: noted.append(args[1])),
    "backward hook": lambda m, noted: m.conv.register_full_backward_hook(lambda *args: noted.append(args[2])),
    "hook of the ReLU": lambda m, noted: m.relu.register_forward_hook(lambda *args: noted.append(args[2])),
    "forward of an instance": lambda m, noted: setattr(
        m.conv, "forward", lambda x, forward=m.conv.forward: noted.append(x) or forward(x)
    ),
    "subclass": lambda m, noted: setattr(m.conv, "__class__", make_subclass(noted)),
    "another layer": lambda m, noted: setattr(m, "relu", nn.ReLU()) or m.relu.register_forward_hook(
        lambda *args: noted.append(args[2])
    ),
}  # fmt: skip


def make_subclass(noted: list) -> type[layers.Conv2d]:
    class Noting(layers.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            noted.append(input)
            return super().forward(input)

    return Noting


@pytest.mark.parametrize("name", OBSERVERS)
@pytest.mark.parametrize("model_name", ["Returned", "Statements"])
def test_who_observes_a_layer_after_the_conversion_sees_it(name, model_name):
    model, noted = mg.from_torch(make(model_name)), []
    expected = model(X)
    OBSERVERS[name](model, noted)
    assert num_fused(model, X) == (model_name == "Statements" and "ReLU" not in name and name != "another layer")
    noted.clear()
    y = model(X)
    y.sum().backward()
    calls = {"Returned": 1, "Statements": 3 if "ReLU" in name or name == "another layer" else 2}
    assert len(noted) == calls[model_name]
    torch.testing.assert_close(y, expected)


def test_hooks_of_all_modules_and_modes():
    model, calls = mg.from_torch(make("Statements")), []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: calls.append(type(module).__name__))
    try:
        model(X)
    finally:
        handle.remove()
    assert calls[:5] == ["Conv2d", "ReLU", "BatchNorm2d", "ReLU", "MaxPool2d"]
    returned = mg.from_torch(make("Returned"))
    assert num_fused(torch.vmap(lambda x: returned(x[None])[0]), X) == 0 and num_fused(returned, X) == 1
    with torch.autocast("cpu", torch.bfloat16):
        assert_equal_one_by_one(model, X)


def test_a_hook_that_replaces_a_layer_while_the_model_runs():
    model = mg.from_torch(make("Returned"))
    model.conv.register_forward_hook(lambda *_: setattr(model, "relu", nn.Tanh()))
    assert torch.equal(model(X), model.conv(X).tanh())


def test_frozen_parameters_and_shared_ones():
    model = mg.from_torch(make("Statements"), copy_parameters=False)
    model.conv.weight.requires_grad_(False)
    assert_equal_one_by_one(model, X)
    with torch.no_grad():
        assert num_fused(model, X) == 3


@pytest.mark.parametrize("functional", [False, True])
def test_states_copies_and_the_way_back(functional):
    native = make("Statements")
    model = mg.from_torch(native, functional=functional)
    assert isinstance(model, chained_models.Statements) and list(model.state_dict()) == list(native.state_dict())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), mg.from_torch(model, functional=True)):
        assert num_fused(other, X) == 3
    for back in (mg.to_torch(model), mg.to_torch(mg.from_torch(model, functional=True))):
        assert [type(m) for m in back.modules()] == [type(m) for m in native.modules()]
        back.load_state_dict(native.state_dict())
        assert torch.equal(back.eval()(X), copy.deepcopy(native).eval()(X))


def test_tracers_see_the_layers():
    native, model = make("Nested").eval(), mg.from_torch(make("Nested")).eval()
    names = [[node.name for node in torch.fx.symbolic_trace(m).graph.nodes] for m in (native, model)]
    assert names[0] == names[1]
    torch.testing.assert_close(torch.jit.trace(model, X)(X), model(X))


@pytest.mark.slow  # it imports the compiler
def test_a_compiled_model():
    model = mg.from_torch(make("Statements"))
    compiled = torch.compile(copy.deepcopy(model), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(X), model(X))


def test_what_a_call_is_made_of_is_evaluated_once():
    chained_models.LAYERS_MADE.clear()
    torch.testing.assert_close(mg.from_torch(make("Making"), functional=True, report=True)[0](X), make("Making")(X))
    assert chained_models.LAYERS_MADE == [3] * 4


def test_without_source_the_layers_run_one_by_one():
    namespace = {"Layers": chained_models.Layers, "__name__": "model_of_a_test"}
    exec("class M(Layers):\n    def forward(self, x):\n        return self.relu(self.conv(x))", namespace)
    model = mg.from_torch(namespace["M"]())
    assert type(model) is namespace["M"] and num_fused(model, X) == 0


def test_squeezenet():
    models = pytest.importorskip("torchvision").models
    model, x = mg.from_torch(models.squeezenet1_1()).eval(), torch.randn(1, 3, 32, 32)
    assert num_fused(model, x) == 2 + 3 * 8  # in each of the eight fire modules three convolutions
    assert_equal_one_by_one(model, x)
