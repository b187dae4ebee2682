"""Promise: a forward with replaced calls decides in every call what the native one decides, and computes the same."""

from __future__ import annotations

import contextlib
import copy
import pickle
import random
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import manualgrad as mg
from tests.interop.deciding_models import (
    FLAGS,
    KINDS,
    Base,
    CallsHelper,
    CheckpointedClosure,
    Counts,
    Held,
    Methods,
    Super,
)
from tests.ops.test_purity import OperatorRecorder


def outcome(module: Base, x: Tensor, seed: int) -> list[Tensor]:
    """The output and, where there is one, the input's gradient, with all random numbers from ``seed``."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    x = x.detach().clone().requires_grad_(x.requires_grad)
    y = module(x)
    if not (torch.is_grad_enabled() and y.requires_grad):
        return [y.detach()]
    y.sum().backward()
    return [y.detach(), *([x.grad] if x.requires_grad else [])]


def assert_same(native: Base, ours: Base, x: Tensor) -> None:
    for seed in range(2):  # one draws less than a half, the other more
        for wanted, got in zip(outcome(native, x, seed), outcome(ours, x, seed), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_each_call_decides_anew(kind: type[Base], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    native = kind().double()
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    ours, report = mg.from_torch(native, functional=True, report=True)
    assert {"F.relu in its forward"} <= {entry.was for entry in report.replaced} and not [
        entry for entry in report.left if "no such" not in entry.why and "used as a value" not in entry.why
    ]
    for situation in (contextlib.nullcontext, torch.no_grad, torch.inference_mode):
        with situation():
            assert_same(native, ours, x)
    for other in (x.repeat(2, 1), x.detach() * float("nan")):
        assert_same(native, ours, other)
    with torch.autocast("cpu"):
        random.seed(0), np.random.seed(0), torch.manual_seed(0)
        wanted = native(x)
        random.seed(0), np.random.seed(0), torch.manual_seed(0)
        torch.testing.assert_close(ours(x), wanted, rtol=0.05, atol=0.05)
    for module in (native, ours):
        module.eval()
        module.scale = 2
    monkeypatch.setenv("MANUALGRAD_TEST_DOUBLE", "1")
    monkeypatch.setitem(FLAGS, "double", True)
    monkeypatch.setattr(time, "time", lambda: 0)
    with OperatorRecorder() as recorder:
        outcome(ours, x, 0)
    assert not recorder.forbidden()
    ours.calls = native.calls
    assert_same(native, ours, x)
    assert type(mg.to_torch(ours)) is kind


@pytest.mark.parametrize("kind", [CheckpointedClosure, Super, Methods, Held, Counts, CallsHelper])
def test_a_copy_that_was_pickled_has_replaced_calls_too(kind: type[Base]) -> None:
    ours = mg.from_torch(kind().double(), functional=True)
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    for copied in (pickle.loads(pickle.dumps(ours)), copy.deepcopy(ours), copy.copy(ours)):
        with OperatorRecorder() as recorder:
            outcome(copied, x, 0)
        assert not recorder.forbidden()
        copied.calls = ours.calls = 0
        assert_same(ours, copied, x)


def test_forwards_with_replaced_calls_compile_as_native_ones_do() -> None:
    torch.manual_seed(0)
    native = nn.Sequential(Super(), Held(), CallsHelper()).double()
    ours = mg.from_torch(native, functional=True)
    x = torch.randn(2, 3, dtype=torch.float64)
    compiled = torch.compile(ours, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), native(x))


class Options(Base):
    def forward(
        self, x: Tensor, pre_logits: bool = False, *others: Tensor, scale: float = 2, **more: Tensor
    ) -> Tensor:
        return x if pre_logits else F.relu(self.f(x)) * scale + sum(others) + sum(more.values())


def test_options_of_a_forward_are_kept() -> None:
    native = Options().double()
    ours, report = mg.from_torch(native, functional=True, report=True)
    assert [entry.was for entry in report.replaced] == ["torch.nn.Linear", "F.relu in its forward"]
    x = torch.randn(2, 3, dtype=torch.float64)
    assert ours(x, True) is x and ours(x, pre_logits=True) is x
    torch.testing.assert_close(ours(x, False, x, x, scale=3, other=x), native(x, False, x, x, scale=3, other=x))


def test_a_function_that_is_bound_anew_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = mg.from_torch(Base(), functional=True)
    monkeypatch.setattr(F, "relu", lambda x: x * 0 + 7)
    assert torch.equal(ours(torch.randn(2, 3)), torch.full((2, 3), 7.0))
