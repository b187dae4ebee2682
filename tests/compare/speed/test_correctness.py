"""Promise: a contender with wrong results is named and never timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import manualgrad as mg
from compare.sections import Table
from compare.speed import benchmark
from compare.speed import contenders as speed_contenders
from compare.speed import operations as speed_operations
from compare.speed import section as speed_section
from compare.speed.contenders import NATIVE, OURS, RECURSION
from compare.speed.correctness import describe_mismatches, relative_error, rounding_tolerance
from compare.speed.network import Network
from manualgrad.ops.conv_relu_pool import conv2d_relu_max_pool2d
from tests.compare.speed.fakes import CONTIGUOUS, SMALL, InProcessWorker, draw


def test_every_operation_is_right() -> None:
    for name, operation in speed_operations.operations(4, (2, 3), 5).items():
        for layout in operation.layouts:
            assert speed_operations.Contender(operation, "ours", layout, "cpu").find_mismatches() == [], (
                name,
                layout,
            )


class ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * 1.001


def returning_first_result(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Function that returns the result of its first call at every call."""
    first_result: list[Tensor] = []

    def call(*inputs: Tensor) -> Tensor:
        if not first_result:
            first_result.append(function(*inputs).detach())
        return first_result[0] + 0 * function(*inputs)

    return call


def max_pool_selecting_the_last_of_a_tie(x: Tensor) -> Tensor:
    return torch.nn.functional.max_pool2d(x.flip(2, 3), 2).flip(2, 3)


WRONG = {
    "a gradient is off by a thousandth": ("dense", lambda x, w, b: mg.dense(ScaledGradient.apply(x), w, b), "input"),
    "a gradient is negative": ("softmax", lambda z: 2 * mg.softmax(z).detach() - mg.softmax(z), "input"),
    "a kernel is not flipped": ("conv2d, second", lambda *t: mg.conv2d(*t, flip_kernel=False), "output"),
    "a bias is forgotten": ("dense", lambda x, w, b: mg.dense(x, w) + 0 * b.sum(), "bias"),
    "derivative 0 at zero": ("relu", lambda x: mg.relu(x, subgradient=0.0), "input"),
    "the last of a tie wins": ("max_pool2d", max_pool_selecting_the_last_of_a_tie, "input"),
    "flattened in another order": ("flatten", lambda x: torch.flatten(x, 1), "output"),
    "the sum instead of the mean": (
        "softmax_cross_entropy",
        lambda z, t: mg.softmax_cross_entropy(z, t, reduction="sum"),
        "output",
    ),
    "derivative 0 at zero, fused": (
        "conv2d_relu_max_pool2d, second",
        lambda *t: conv2d_relu_max_pool2d(*t, subgradient=0.0),
        "weight",
    ),
    "the result of an earlier call": ("conv2d, first", returning_first_result(mg.conv2d), "output"),
    "NaN": ("relu", lambda x: mg.relu(x) * float("nan"), "output"),
    "another shape": ("softmax", lambda z: mg.softmax(z)[:-1], "output"),
}


@pytest.mark.parametrize("defect", WRONG)
def test_a_wrong_operation_is_found(defect: str) -> None:
    name, function, tensor = WRONG[defect]
    operation = replace(speed_operations.operations(4, (2, 3), 5)[name], ours=function)
    sentences = speed_operations.Contender(operation, "ours", "contiguous", "cpu").find_mismatches()
    assert any(sentence.startswith(tensor) for sentence in sentences), sentences


def test_every_contender_is_right() -> None:
    for network in (SMALL, Network((2, 3), 1)):
        for name in speed_contenders.contender_names():
            assert speed_contenders.make_contender(name, network, "cpu").find_mismatches() == [], name


class ScaledReLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(min=0) * 1.001


def test_a_wrong_contender_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    contender = speed_contenders.make_contender(OURS, SMALL, "cpu")
    contender.model.relu2 = ScaledReLU()
    assert any(sentence.startswith("loss is off") for sentence in contender.find_mismatches())

    descend = speed_contenders.backprop.descend

    def twice_the_last_bias(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        steps = descend(model, *args, **kwargs)
        with torch.no_grad():
            model.dense3.bias += steps.biases[-1]
        return steps

    monkeypatch.setattr(speed_contenders.backprop, "descend", twice_the_last_bias)
    sentences = speed_contenders.make_contender(RECURSION, SMALL, "cpu").find_mismatches()
    assert sentences and all(sentence.startswith("dense3.bias is off by 1 ") for sentence in sentences)


def test_weights_are_unchanged_by_the_check_and_by_steps() -> None:
    for name in speed_contenders.contender_names():
        contender = speed_contenders.make_contender(name, SMALL, "cpu")
        before = {key: value.clone() for key, value in contender.model.state_dict().items()}
        contender.find_mismatches()
        for _ in range(3):
            contender.step(lambda: None)
        for key, value in contender.model.state_dict().items():
            assert torch.allclose(value, before[key], atol=1e-6), (name, key)


def test_a_wrong_contender_is_a_failure_and_has_no_time(
    in_process_worker: type[InProcessWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [
        replace(option, operation=replace(option.operation, ours=lambda x: mg.relu(x) * 1.001))
        if option.title == "relu"
        else option
        for option in speed_operations.OPTIONS
    ]
    monkeypatch.setattr(speed_operations, "OPTIONS", options)
    monkeypatch.setattr(speed_contenders.backprop, "descend", _without_update)
    result = benchmark.compare_speed(
        networks=[SMALL], curve=(), rounds=1, seconds_per_measurement=1e-6, compiled=False
    )
    wrong = {(entry.subject, entry.contender) for entry in result.wrong_results}
    assert wrong == {("relu", f"{OURS}, {layout}") for layout in NATIVE} | {(str(SMALL), RECURSION)}
    timed = {(row.subject, row.contender) for row in result.rows}
    assert not wrong & timed
    assert (str(SMALL), OURS) in timed and ("relu", CONTIGUOUS) in timed
    calls = in_process_worker.calls
    after_check = calls[calls.index(("find_mismatches", RECURSION)) :]
    assert ("measure_time", RECURSION) not in after_check and ("calibrate", RECURSION) not in after_check

    section = speed_section.section(result)
    assert len(section.failures) == len(wrong)
    assert any(failure.startswith("relu: ") for failure in section.failures)
    assert any("3 were wrong and not timed" in sentence for sentence in section.text)
    (line,) = [row for part in section.parts if isinstance(part, Table) for row in part.rows
               if part.title.startswith("Operations") and row[0] == "relu"]  # fmt: skip
    assert line[1] is None and line[3:6] == ("wrong",) * 3
    draw(section.parts)


def _without_update(model: nn.Module, *arguments: Any, eta: float) -> Any:
    return speed_contenders.backprop.backpropagate(model, *arguments, eta=eta)


def test_each_kind_of_mismatch_has_its_sentence() -> None:
    one, eps = torch.ones(3), torch.finfo(torch.float32).eps
    assert describe_mismatches({"x": one}, {"x": one.double()}, 0.0) == []
    assert describe_mismatches({}, {"x": one}, 1.0) == ["x is missing"]
    assert describe_mismatches({"x": one[:2]}, {"x": one}, 1.0) == ["x has the shape (2,) instead of (3,)"]
    assert describe_mismatches({"x": one * 1.5}, {"x": one}, 0.4)[0].startswith("x is off by 0.5 ")
    assert describe_mismatches({"x": one * float("inf")}, {"x": one}, 0.4) != []
    assert describe_mismatches({"x": one}, {"x": 0 * one}, 0.4) != []
    assert relative_error(0 * one, 0 * one) == 0
    assert rounding_tolerance(100, "cpu") == pytest.approx(40 * eps)
