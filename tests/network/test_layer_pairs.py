"""Promise: a converted convolution and the ReLU behind it run as one operation where nothing shows the difference."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import manualgrad as mg
from manualgrad import kernels
from manualgrad.interop import layers
from manualgrad.ops.conv2d_geometry import make_conv2d_geometry
from manualgrad.ops.conv_relu import conv_relu_apply

X = torch.randn(2, 3, 6, 7, generator=torch.Generator().manual_seed(0))


def make_native(inplace: bool = False, padding_mode: str = "zeros") -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, padding_mode=padding_mode), nn.ReLU(inplace), nn.MaxPool2d(2),
        nn.Conv2d(6, 6, 2, groups=6, bias=False), nn.ReLU(inplace), nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4), nn.ReLU(),
    )  # fmt: skip


def num_fused(model: nn.Module, x: Tensor = X) -> int:
    """Number of fused operations in a call of ``model``."""
    return sum(record.formula == "conv_relu_forward" for record in kernels.explain(model, x).records)


def run(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Result, and gradients of all parameters that need one, and of ``x``."""
    x = x.detach().requires_grad_()
    y = model(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=x.dtype).view(y.shape)
    needs_grad = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), [x, *needs_grad])]


def one_by_one(model: nn.Module) -> nn.Module:
    """A copy whose layers run one by one."""
    copied = copy.deepcopy(model)
    for module in list(copied.modules()):
        if type(module) is mg.Sequential:
            module.__class__ = nn.Sequential
    return copied


def assert_equal(model: nn.Module, x: Tensor = X, fused: int = 2) -> None:
    assert num_fused(model, x) == fused and num_fused(one_by_one(model), x) == 0
    for actual, expected in zip(run(model, x), run(one_by_one(model), x), strict=True):
        assert actual.stride() == expected.stride()
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        assert torch.equal(model(x), one_by_one(model)(x))


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
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in OBSERVERS]
)
def test_a_pair_that_is_observed_runs_as_two_layers(name):
    model = mg.from_torch(make_native())
    assert num_fused(model) == 2
    OBSERVERS[name](model)
    assert num_fused(model) == 1, "the other pair is not observed"
    assert torch.equal(model(X), mg.from_torch(make_native())(X))


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


def test_derivatives_of_the_function():
    torch.manual_seed(0)
    x, w, b = (torch.randn(*shape, dtype=torch.float64) for shape in ((1, 2, 3, 3), (2, 2, 2, 2), (2,)))
    geometry = make_conv2d_geometry(x, w, b, 1, 0, 1, 1, False, True)
    tensors = tuple(t.requires_grad_() for t in (x, w, b))
    assert torch.autograd.gradcheck(lambda *t: conv_relu_apply(*t, geometry), tensors, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda *t: conv_relu_apply(*t, geometry), tensors)
    batch = torch.stack([x.detach(), -x.detach()])
    actual = torch.vmap(lambda x: conv_relu_apply(x, w, b, geometry))(batch)
    torch.testing.assert_close(actual, torch.stack([conv_relu_apply(x, w, b, geometry) for x in batch]))


@pytest.mark.skipif(not kernels.available().instructions, reason=str(kernels.available()))
def test_the_kernel_computes_the_pairs_of_torchvision_models():
    models = pytest.importorskip("torchvision").models
    x = torch.randn(1, 3, 32, 32)
    for make, fused in ((models.vgg11, 8), (models.squeezenet1_1, 2)):
        model = mg.from_torch(make())
        model = model.features if fused == 8 else model
        records = [r for r in kernels.explain(model, x).records if r.formula == "conv_relu_forward"]
        assert [r.computed_by for r in records] == ["cpu kernel"] * fused
