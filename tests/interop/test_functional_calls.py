"""Promise: functional calls in a forward become ours if a trace computes all that the forward does, and only then."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import manualgrad as mg
from manualgrad.interop import layers, operations
from tests.interop.test_from_torch import CLOSE, run, seeded
from tests.ops.test_purity import OperatorRecorder

IMAGE = (2, 4, 6, 6)


class Calling(nn.Module):
    """A module whose forward calls ``function``, with the module and a convolution's output."""

    def __init__(self, function: Callable) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(6, 4)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, self.conv(x))


LABELS = torch.zeros(2, 6, 6, dtype=torch.long)
CALLS = {
    "F.relu": lambda m, x: F.relu(x),
    "F.relu, in place": lambda m, x: F.relu(x, inplace=True) + x,
    "F.relu, in place, result unused": lambda m, x: (F.relu_(x), x)[1],
    "F.relu_": lambda m, x: F.relu_(x) + x,
    "torch.relu": lambda m, x: torch.relu(x),
    "torch.relu_": lambda m, x: torch.relu_(x) * x,
    "Tensor.relu": lambda m, x: x.relu(),
    "Tensor.relu_": lambda m, x: x.relu_(),
    "F.max_pool2d": lambda m, x: F.max_pool2d(x, 3, stride=2, padding=1, ceil_mode=True),
    "F.max_pool2d, indices": lambda m, x: F.max_pool2d(x, 2, return_indices=True)[0],
    "F.max_pool2d_with_indices": lambda m, x: F.max_pool2d_with_indices(x, 2)[0],
    "torch.max_pool2d": lambda m, x: torch.max_pool2d(x, (2, 3)),
    "torch.flatten": lambda m, x: torch.flatten(x, 1),
    "torch.flatten, all": lambda m, x: torch.flatten(x),
    "Tensor.flatten": lambda m, x: x.flatten(start_dim=1, end_dim=2),
    "F.linear": lambda m, x: F.linear(x, m.fc.weight, m.fc.bias),
    "F.linear, without bias": lambda m, x: F.linear(x, weight=m.fc.weight),
    "F.conv2d": lambda m, x: F.conv2d(x, m.conv.weight, m.conv.bias, padding="same", dilation=2),
    "torch.conv2d": lambda m, x: torch.conv2d(x, m.conv.weight[:, :2], None, 2, 1, 1, 2),
    "F.softmax": lambda m, x: F.softmax(x, 1),
    "F.softmax, dtype": lambda m, x: F.softmax(x.float(), dim=-1, dtype=torch.float64),
    "torch.softmax": lambda m, x: torch.softmax(x, dim=1),
    "Tensor.softmax": lambda m, x: x.softmax(-1),
    "F.cross_entropy": lambda m, x: F.cross_entropy(x, x.argmax(1), label_smoothing=0.1, reduction="none"),
}


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_call_is_replaced_by_ours(call: Callable) -> None:
    native = Calling(call).double()
    ours, report = mg.from_torch(native, functional=True, report=True)
    assert [entry.name for entry in report.replaced] == ["conv", "fc", ""] and not report.left
    x = torch.randn(IMAGE, dtype=torch.float64)
    with OperatorRecorder() as recorder:
        results = run(ours, x)
    assert not recorder.forbidden()
    torch.testing.assert_close(results, run(native, x), **CLOSE)
    assert isinstance(ours, Calling) and list(ours.state_dict()) == list(native.state_dict())
    assert type(mg.to_torch(ours)) is Calling


class Net(nn.Module):
    """A model whose forward has functional calls, as in tutorials."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)
        self.fc = nn.Linear(4 * 3 * 4, 5)
        self.p = 0.5

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.dropout(F.relu(self.conv2(x), inplace=True), self.p, training=self.training)
        x = x.view(-1, 4 * 3 * 4)
        if self.training:
            x = x * 2
        return torch.softmax(self.fc(x), 1)


def test_a_traced_forward_reads_the_training_mode_in_every_call() -> None:
    native = Net().double()
    ours, report = mg.from_torch(native, functional=True, report=True)
    assert sorted({entry.was for entry in report.replaced}) == [
        "F.max_pool2d in its forward", "F.relu in its forward", "torch.nn.Conv2d", "torch.nn.Linear",
        "torch.softmax in its forward",
    ]  # fmt: skip
    assert [(entry.kind, entry.why) for entry in report.left] == [
        ("F.dropout in its forward", "manualgrad has no such function")
    ]
    outputs = []
    for training in (True, False, True):
        for model in (native, ours):
            model.train(training)
        results = seeded(ours)
        torch.testing.assert_close(results, seeded(native), **CLOSE)
        outputs.append(results["output"])
    assert torch.equal(outputs[0], outputs[2]) and not torch.equal(outputs[0], outputs[1])


def test_a_traced_model_can_be_copied_pickled_and_converted_back() -> None:
    ours = mg.from_torch(nn.Sequential(Net(), nn.ReLU()).double(), functional=True)
    x = torch.randn(2, 3, 8, 10, dtype=torch.float64)
    for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        torch.testing.assert_close(seeded(copied, x), seeded(ours, x), rtol=0, atol=0)
        copied.eval()
        assert torch.equal(copied(x), copy.deepcopy(ours).eval()(x))
    back = mg.to_torch(ours)
    assert type(back[0]) is Net
    with OperatorRecorder() as recorder:
        back(x)
    assert recorder.forbidden()


def test_hooks_names_and_other_forwards_are_kept() -> None:
    native = nn.Sequential(Net(), Net())[:1]
    called = []
    native[0].register_forward_hook(lambda *_: called.append("hook"))
    native[0].extra = nn.Linear(1, 1)  # not called in forward
    ours = mg.from_torch(native, functional=True, report=True)[0]
    ours(torch.randn(1, 3, 8, 10))
    assert called == ["hook"] and list(ours.state_dict()) == list(native.state_dict())


class Branches(Net):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x) if x.sum() > 0 else x


class ChecksType(Net):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x if isinstance(x, Tensor) else x[0])


class OptionalArgument(Net):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return F.relu(x if mask is None else x * mask)


class WithoutGradient(Net):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = F.relu(x)
        return y + x


class AddsNoise(Net):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + torch.randn(1))


class DrawsRandomFactor(Net):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x * random.random())


class CountsCalls(Net):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return F.relu(x)


class StoresInputs(Net):
    def __init__(self) -> None:
        super().__init__()
        self.inputs = []

    def forward(self, x: Tensor) -> Tensor:
        self.inputs.append(x)
        return F.relu(x)


class ReadsAnothersMode(Net):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(F.dropout(x, 0.5, self.conv1.training))


class WithAutocast(Net):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return F.relu(x)


UNTRACEABLE = {
    Branches: "symbolically traced variables cannot be used as inputs to control flow",
    ChecksType: "reads the type of a tensor",
    OptionalArgument: "takes mask.*= None",
    WithoutGradient: "switches gradients or autocast",
    WithAutocast: "switches gradients or autocast",
    AddsNoise: "makes a tensor without its input",
    DrawsRandomFactor: "draws random numbers without its input",
    CountsCalls: "sets attributes",
    StoresInputs: "sets attributes",
    ReadsAnothersMode: "training mode of another module",
}


@pytest.mark.parametrize(("kind", "why"), UNTRACEABLE.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_a_forward_that_a_trace_would_change_is_refused_or_listed(kind: type[Net], why: str) -> None:
    native = nn.Sequential(kind(), Net())
    native[0].conv1.eval()
    before = torch.get_rng_state(), random.getstate(), [m.training for m in native.modules()]
    with pytest.raises(
        ValueError,
        match=rf"pass report=True to leave these as they are and list them:\n  0: .*{kind.__name__}: .*{why}",
    ):
        mg.from_torch(native, functional=True)
    ours, report = mg.from_torch(native, functional=True, report=True)
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    assert [m.training for m in ours.modules()] == before[2]
    assert type(ours[0]) is kind and isinstance(ours[0].conv1, layers.Conv2d), (
        "its layers must be replaced nevertheless"
    )
    assert vars(ours[0]).get("calls", 0) == 0 and not getattr(ours[0], "inputs", ())
    assert {entry.name for entry in report.replaced if "in its forward" in entry.was} == {"1"}
    assert [entry.name for entry in report.left if "cannot be traced" in entry.why] == ["0"]
    x = torch.randn(1, 4, 3, 3)
    assert ours[0](x).shape == x.shape


@pytest.mark.parametrize(("call", "was", "why"), [
    (lambda m, x: F.softmax(x), "F.softmax", "dim=None"),
    (lambda m, x: F.cross_entropy(x, x.argmax(1), size_average=False), "F.cross_entropy", "size_average is deprec"),
    (lambda m, x: torch.softmax(x, 1, out=x), "torch.softmax", "our function does not take these arguments"),
    (lambda m, x: F.avg_pool2d(F.gelu(x), 2), "F.gelu", "no such function"),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:Implicit dimension", "ignore:size_average and reduce")
def test_calls_that_ours_cannot_replace_are_left_and_listed(call: Callable, was: str, why: str) -> None:
    _, report = mg.from_torch(Calling(call), functional=True, report=True)
    assert (f"{was} in its forward", True) in [(entry.kind, why in entry.why) for entry in report.left]
    assert not any("in its forward" in entry.was for entry in report.replaced)


def test_without_functional_a_forward_is_not_traced() -> None:
    assert type(mg.from_torch(Net())) is Net


def test_operations_have_natives_signatures() -> None:
    """A trace passes arguments by position, so the order must be native."""
    x, w, b = torch.randn(IMAGE), torch.randn(4, 2, 3, 3), torch.randn(4)
    torch.testing.assert_close(operations.conv2d(x, w, b, 2, 1, 1, 2), F.conv2d(x, w, b, 2, 1, 1, 2))
    torch.testing.assert_close(operations.max_pool2d(x, 3, 2, 1, 2, True), F.max_pool2d(x, 3, 2, 1, 2, True))
    torch.testing.assert_close(operations.flatten(x, 1, 2), torch.flatten(x, 1, 2))
