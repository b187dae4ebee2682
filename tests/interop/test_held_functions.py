"""Promise: native functions that attributes, tables, partials and closures hold become ours, or are listed."""

from __future__ import annotations

import copy
import functools
import pickle
import types
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import manualgrad as mg
from tests.ops.test_purity import OperatorRecorder

TABLE = {"relu": (F.relu, "in a tuple")}
PARTIAL = functools.partial(F.relu, inplace=False)
CONFIG = SimpleNamespace(activation=F.relu)


def double_relu(x: Tensor) -> Tensor:
    return F.relu(x) * 2


class Holds(nn.Module):
    """Functions in attributes of the instance and of the class."""

    built_in, static, table_of_class = torch.relu, staticmethod(double_relu), {"relu": F.relu}

    def __init__(self) -> None:
        super().__init__()
        self.name, self.partial = "relu", functools.partial(F.relu)
        self.table, self.config = {"relu": F.relu, "double": double_relu}, SimpleNamespace(functions=[F.relu])

    def forward(self, x: Tensor) -> Tensor:
        return x


def activate_by(module: Holds, x: Tensor) -> Tensor:
    """A function of the model's code that is given a module."""
    return module.partial(module.table["relu"](x))


class PartialOfInstance(Holds):
    def forward(self, x: Tensor) -> Tensor:
        return self.partial(x)


class Get(Holds):
    def forward(self, x: Tensor) -> Tensor:
        return self.table.get(self.name)(x)


class Config(Holds):
    def forward(self, x: Tensor) -> Tensor:
        return self.config.functions[0](x) + CONFIG.activation(x)


class OfClass(Holds):
    def forward(self, x: Tensor) -> Tensor:
        return self.built_in(x) + self.static(x) + self.__class__.table_of_class["relu"](x)


class Globals(Holds):
    def forward(self, x: Tensor) -> Tensor:
        return PARTIAL(x) + TABLE["relu"][0](x)


class ByName(Holds):
    def forward(self, x: Tensor) -> Tensor:
        return getattr(F, self.name)(x) + vars(F)[self.name](x)


class MadeHere(Holds):
    def forward(self, x: Tensor) -> Tensor:
        return nn.ReLU()(x) + nn.Softmax(dim=1)(x)


class OfChildren(Holds):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Holds(), Holds()])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block.partial(x) + block.table["double"](x)
        return activate_by(self.blocks[0], x)


def closure(activation: Callable) -> nn.Module:
    class Closure(nn.Module):
        def forward(self, x: Tensor, default: Callable = PARTIAL) -> Tensor:
            return activation(x) + default(x)

    return Closure()


def with_own_forward(as_method: bool) -> nn.Module:
    module = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    function = double_sequence if as_method else double_relu
    module.forward = types.MethodType(function, module) if as_method else function
    return module


def double_sequence(self: nn.Sequential, x: Tensor) -> Tensor:
    return F.relu(nn.Sequential.forward(self, x)) * 2


MODELS: dict[str, Callable[[], nn.Module]] = {
    **{
        kind.__name__: kind
        for kind in (PartialOfInstance, Get, Config, OfClass, Globals, ByName, MadeHere, OfChildren)
    },
    "a closure": lambda: closure(F.relu),
    "a partial in a closure": lambda: closure(functools.partial(F.relu)),
    "a method put on an instance of torch's": lambda: with_own_forward(as_method=True),
    "a function put on an instance of torch's": lambda: with_own_forward(as_method=False),
}


def native_operators(module: nn.Module, x: Tensor) -> object:
    with OperatorRecorder() as recorder:
        module(x)
    return recorder.forbidden()


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_a_held_function_is_replaced(make: Callable[[], nn.Module]) -> None:
    native, x = make().double(), torch.randn(2, 4, dtype=torch.float64)
    ours, report = mg.from_torch(native, functional=True, report=True)
    assert any("in its forward" in entry.was for entry in report.replaced)
    assert not [entry for entry in report.left if "no such layer" not in entry.why]
    assert native_operators(native, x) and not native_operators(ours, x)
    copied = copy.deepcopy(ours)
    assert not native_operators(copied, x)
    back = mg.to_torch(ours)
    assert type(back) is type(native) and vars(back).keys() == vars(native).keys() and native_operators(back, x)
    for model in (ours, copied, back):
        torch.testing.assert_close(model(x), native(x))


def test_a_function_put_on_an_instance_can_be_pickled() -> None:
    ours, x = mg.from_torch(with_own_forward(as_method=False), functional=True), torch.randn(2, 4)
    loaded = pickle.loads(pickle.dumps(ours))
    assert torch.equal(loaded(x), double_relu(x)) and not native_operators(loaded, x)
    ours.forward = torch.tanh
    assert torch.equal(copy.deepcopy(ours)(x), x.tanh())


def test_a_transformers_activation_is_replaced_and_its_fast_path_listed() -> None:
    native = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, activation=F.relu, batch_first=True)
    ours, report = mg.from_torch(native, functional=True, report=True)
    assert "F.relu in its activation" in [entry.was for entry in report.replaced]
    whys = {entry.kind: entry.why for entry in report.left}
    assert "set_fastpath_enabled(False)" in whys["torch.nn.TransformerEncoderLayer"]
    assert whys["torch.nn.MultiheadAttention"] == "manualgrad has no such layer"
    x = torch.randn(2, 3, 4)
    assert "aten::relu" in str(native_operators(native, x)) and "aten::relu" not in str(native_operators(ours, x))
    torch.testing.assert_close(pickle.loads(pickle.dumps(ours))(x), native(x))
    back = mg.to_torch(ours)
    assert back.activation is F.relu and vars(back).keys() == vars(native).keys()


class Callables:
    def __call__(self, x: Tensor) -> Tensor:
        return F.relu(x)


class HoldsCallable(Holds):
    def __init__(self) -> None:
        super().__init__()
        self.function, self.method = Callables(), PartialOfInstance().forward

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x) + self.method(x)


def test_held_objects_that_stay_native_are_listed() -> None:
    native = HoldsCallable()
    with pytest.raises(ValueError, match="its attribute function is a Callables, which is no module"):
        mg.from_torch(native, functional=True)
    _, report = mg.from_torch(native, functional=True, report=True)
    assert "self.method in its forward" in [entry.kind for entry in report.left]
    native = nn.Sequential(nn.Tanh())
    native.forward = functools.partial(double_sequence, native)
    with pytest.raises(ValueError, match="a forward of its own, which is a partial of double_sequence"):
        mg.from_torch(native, functional=True)


class Unsupported(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.threshold(x, 0.1, 0.0) + torch.log_softmax(x, 1) + torch.ops.aten.relu(x)
        return y + x.log_softmax(1) + x.clamp_min(0).sigmoid() + torch.special.log_softmax(x, 1) + torch.celu_(x + 1)


def test_native_calls_of_torch_and_of_tensors_are_listed() -> None:
    _, report = mg.from_torch(Unsupported(), functional=True, report=True)
    listed = {entry.kind for entry in report.left if "no such function" in entry.why}
    assert listed == {f"{name} in its forward" for name in (
        "torch.threshold", "torch.log_softmax", "torch.ops.aten.relu", "Tensor.log_softmax", "Tensor.clamp_min",
        "Tensor.sigmoid", "torch.special.log_softmax", "torch.celu_",
    )}  # fmt: skip
