"""Promise: bad numbers and too little memory are reported with their place (docs/reliability.md)."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import nn

import manualgrad as mg
from manualgrad.training import command, nonfinite
from manualgrad.training.checkpoints import CheckpointStore
from tests.training.command_line import train

pytestmark = pytest.mark.usefixtures("no_plots")


def test_a_non_finite_loss_is_reported_with_step_layer_and_tensor(common, tmp_path):
    result = train(*common, "--learning-rate", "1e30", "--schedule", "constant", "--checkpoint-every", 1)
    assert result.returncode == 1
    report = re.search(
        r"the loss is (nan|inf) at step (\d+) of epoch 1; the first non-finite tensor is (.*)\. The steps",
        result.stderr,
    )
    assert re.match(r"(the output of )?(conv|dense)\d.*values, the first (nan|-?inf) at index \[", report[3])
    newest = CheckpointStore(tmp_path / "out" / "checkpoints").newest_first()[0]
    assert f"{newest} is complete" in result.stderr
    assert newest.name == f"step-{int(report[2]) - 1:09}.checkpoint", "the last checkpoint with finite weights"
    assert not (tmp_path / "out" / "weights.pt").exists()


@pytest.mark.parametrize("engine", ["autograd", "document"])
@pytest.mark.parametrize("name, description", [
    ("dense2.weight", "dense2.weight, 1 of 65,536 values, the first nan at index [0, 1]"),
    ("conv1.bias", "conv1.bias, 1 of 32 values, the first nan at index [0]"),
])  # fmt: skip
def test_the_first_non_finite_tensor_is_reported(common, monkeypatch, engine, name, description):
    original = command.TrainingRun.train_step

    def train_step_with_nan(self):
        if self.step == 12:
            with torch.no_grad():
                dict(self.model.named_parameters())[name].view(-1)[1 if "weight" in name else 0] = torch.nan
        return original(self)

    monkeypatch.setattr(command.TrainingRun, "train_step", train_step_with_nan)
    result = train(*common, "--engine", engine)
    assert result.returncode == 1
    assert f"the loss is nan at step 3 of epoch 2; the first non-finite tensor is {description}" in result.stderr


def test_the_search_for_non_finite_tensors_follows_the_order_of_a_step():
    model = mg.DocumentCNN(channels=(2,), hidden=(3,))
    x = torch.randn(2, 1, 28, 28)
    model.cost(x, torch.tensor([1, 2])).backward()
    first = lambda: nonfinite.describe_first_nonfinite(nonfinite.step_tensors(model, x))  # noqa: E731
    assert first() is None
    model.conv0.weight.grad[0, 0, 0, 0] = torch.inf
    assert first().startswith("the gradient of conv0.weight, 1 of 50 values, the first inf")
    model.dense2.bias.grad[3] = -torch.inf
    assert first().startswith("the gradient of dense2.bias, 1 of 10 values, the first -inf at index [3]")
    nn.init.constant_(model.dense1.weight, 3e38)
    assert first().startswith("the output of dense1")
    x[1, 0, 2, 3] = torch.nan
    assert first() == "the input, 1 of 1,568 values, the first nan at index [1, 0, 2, 3]"


def memory_error():
    raise MemoryError


@pytest.mark.parametrize("allocate", [
    lambda self: torch.empty(1 << 60, dtype=torch.uint8),
    lambda self: np.empty(1 << 60, dtype=np.uint8),
    lambda self: memory_error(),
], ids=["torch", "numpy", "without words"])  # fmt: skip
def test_out_of_memory_is_reported_with_advice(common, monkeypatch, allocate):
    monkeypatch.setattr(command.TrainingRun, "train_step", allocate)
    result = train(*common)
    assert result.returncode == 1
    assert (
        "out of memory: try a smaller --batch-size or network (" in result.stderr and "Traceback" not in result.stderr
    )


def test_a_programming_error_keeps_its_traceback(common, monkeypatch):
    def fail(self):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(command.TrainingRun, "train_step", fail)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        train(*common)
