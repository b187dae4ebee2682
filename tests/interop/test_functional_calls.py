"""Promise: functional calls in a forward become ours, or are listed with a reason."""

from __future__ import annotations

import copy
import functools
import importlib
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import manualgrad as mg
from manualgrad.interop import operations
from tests.interop.model_runs import CLOSE, run, seeded
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
    "F.softmax, no dimension": lambda m, x: F.softmax(x) + F.softmax(x[0]),
    "F.softmax, by position": lambda m, x: F.softmax(x, 1, 3, torch.float64),
    "F.cross_entropy, deprecated arguments": lambda m, x: (
        F.cross_entropy(x, x.argmax(1), None, False)
        + F.cross_entropy(x, x.argmax(1), reduce=False, size_average=True)
    ),
    "F.softmax, dtype": lambda m, x: F.softmax(x.float(), dim=-1, dtype=torch.float64),
    "torch.special.softmax": lambda m, x: torch.special.softmax(x, 1),
    "torch.softmax": lambda m, x: torch.softmax(x, dim=1),
    "Tensor.softmax": lambda m, x: x.softmax(-1),
    "F.cross_entropy": lambda m, x: F.cross_entropy(x, x.argmax(1), label_smoothing=0.1, reduction="none"),
}


@pytest.mark.filterwarnings("ignore:Using padding='same'", "ignore:Implicit dimension", "ignore:size_average and red")
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


def test_a_forward_reads_the_training_mode_in_every_call() -> None:
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


def test_a_converted_model_can_be_copied_pickled_and_converted_back() -> None:
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


SOURCE = """
import torch.nn.functional as F
from torch import nn

class Made(nn.Module):
    def forward(self, x):
        return F.relu(x)

class Other(nn.Module):
    def forward(self, x):
        return F.gelu(x) + F.silu(x)
"""


def made(name: str) -> nn.Module:
    """A module whose source is in no file."""
    variables: dict = {"__name__": "made"}
    exec(compile(SOURCE, "<no file>", "exec"), variables)
    return variables[name]()


def changed(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """A module whose source was changed after its import."""
    monkeypatch.syspath_prepend(folder)
    (folder / "changed.py").write_text(SOURCE)
    module = importlib.import_module("changed")
    (folder / "changed.py").write_text(SOURCE.replace("F.relu(x)", "F.relu(x) * 2"))
    return getattr(module, name)()


def test_a_method_without_its_source_is_refused_or_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = ((made("Made"), "in python -c"), (changed("Made", tmp_path, monkeypatch), "line 6, is not what runs"))
    for native, why in cases:
        model = nn.Sequential(native, Net())
        expected = f"pass report=True to leave these as they are and list them:\n  0: .*Made: .*{why}"
        with pytest.raises(ValueError, match=expected):
            mg.from_torch(model, functional=True)
        ours, report = mg.from_torch(model, functional=True, report=True)
        assert {entry.name for entry in report.replaced if "in its forward" in entry.was} == {"1"}
        assert [entry.name for entry in report.left if "cannot be rewritten" in entry.why] == ["0"]
        assert type(ours[0]) is type(native)


def test_a_forward_with_nothing_to_replace_is_no_error() -> None:
    assert type(mg.from_torch(made("Other"), functional=True)).__name__ == "Other"


@torch.jit.script
def scripted(x: Tensor) -> Tensor:
    return torch.relu(x)


class OtherCopies(Net):
    def __reduce__(self) -> tuple:
        return OtherCopies, ()


def test_calls_by_other_code_are_listed() -> None:
    class Mapped(Net):
        def forward(self, x: Tensor) -> Tensor:
            return sum(map(F.relu, [x])) + scripted(x)

    _, report = mg.from_torch(Mapped(), functional=True, report=True)
    lines = [str(entry) for entry in report.left]
    for expected in ("F.relu in its forward: used as a value", "scripted in its forward: compiled by TorchScript"):
        assert any(expected in line for line in lines)
    ours, report = mg.from_torch(OtherCopies(), functional=True, report=True)
    assert type(ours) is OtherCopies and any("has a __reduce__ of its own" in entry.why for entry in report.left)
    ours = Net()
    ours.forward = functools.partial(Net.forward, ours)
    with pytest.raises(ValueError, match="this instance has a forward of its own, which is a partial of forward"):
        mg.from_torch(ours, functional=True)


def test_torchscript_refuses_a_forward_with_replaced_calls() -> None:
    class OnlyCalls(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x)

    with pytest.raises(TypeError, match=r"compile manualgrad\.to_torch"):
        torch.jit.script(mg.from_torch(OnlyCalls(), functional=True))


def test_a_rewritten_module_is_not_listed_as_left() -> None:
    class OnlyCalls(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x)

    assert not mg.from_torch(OnlyCalls(), functional=True, report=True)[1].left
    assert [entry.why for entry in mg.from_torch(OnlyCalls(), report=True)[1].left] == [
        "manualgrad has no such layer"
    ]


def test_the_report_counts_before_it_names() -> None:
    _, report = mg.from_torch(nn.Sequential(Net(), Net(), nn.GELU(), nn.Identity()), functional=True, report=True)
    lines = str(report).splitlines()
    assert lines[0] == "replaced: 12" and lines[1].split(" x ")[0].strip() == "4"
    names = lines.index("replaced, by name:")
    assert lines.index("left: 3") < names and not any("Identity" in line for line in lines)
    assert "     1 x torch.nn.GELU: manualgrad has no such layer" in lines[:names]
    assert not any("GELU" in line for line in lines[names:])
    assert any(line.endswith("operations.max_pool2d: 0, 1") for line in lines[names:])


@pytest.mark.parametrize(("call", "was", "why"), [
    (lambda m, x: torch.softmax(x, 1, out=x), "torch.softmax", "our function does not take out"),
    (lambda m, x: F.avg_pool2d(F.gelu(x), 2), "F.gelu", "no such function"),
])  # fmt: skip
def test_calls_that_ours_cannot_replace_are_left_and_listed(call: Callable, was: str, why: str) -> None:
    _, report = mg.from_torch(Calling(call), functional=True, report=True)
    assert (f"{was} in its forward", True) in [(entry.kind, why in entry.why) for entry in report.left]
    assert not any("in its forward" in entry.was for entry in report.replaced)


def test_without_functional_a_class_is_kept() -> None:
    assert type(mg.from_torch(Net())) is Net


def test_operations_have_natives_signatures() -> None:
    """Rewritten calls pass arguments as they were written, so names and order must be native."""
    x, w, b = torch.randn(IMAGE), torch.randn(4, 2, 3, 3), torch.randn(4)
    torch.testing.assert_close(operations.conv2d(x, w, b, 2, 1, 1, 2), F.conv2d(x, w, b, 2, 1, 1, 2))
    torch.testing.assert_close(operations.max_pool2d(x, 3, 2, 1, 2, True), F.max_pool2d(x, 3, 2, 1, 2, True))
    torch.testing.assert_close(operations.flatten(x, 1, 2), torch.flatten(x, 1, 2))
