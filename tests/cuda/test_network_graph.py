"""Promise: a captured step has the bits of a step that is not, and reads each batch and learning rate anew."""

from __future__ import annotations

import copy

import pytest
import torch

from manualgrad import DocumentCNN, backprop, tensor_checks
from manualgrad.network.cuda_graph import capture_step
from tests.cuda.test_capture import RefuseToWait
from tests.cuda.test_network import FUSED_STEP, TINY, on, tiles  # noqa: F401
from tests.network.plan_models import make_model


def test_a_replay_has_the_bits_of_an_eager_step(tiles, kernel_device, launches):  # noqa: F811
    model, x, labels = on(kernel_device, *make_model(3, **TINY))
    eager = copy.deepcopy(model)
    step = capture_step(model, torch.zeros_like(x), torch.zeros_like(labels))
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), eager.parameters(), strict=True))
    launches.clear()
    version = model.conv0.weight._version
    result = step(x, labels, 0.5)
    updates = backprop.descend(eager, x, labels, 0.5)
    assert torch.equal(result.loss, updates.cost)
    assert torch.equal(result.probabilities, updates.probabilities)
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), eager.parameters(), strict=True))
    assert model.conv0.weight._version > version
    if kernel_device == "cpu":
        assert launches == 2 * FUSED_STEP


@pytest.mark.parametrize("engine", ["autograd", "document"])
def test_others_can_capture_a_step(tiles, kernel_device, launches, monkeypatch, engine):  # noqa: F811
    """Nothing of it reads a value of a tensor, or copies numbers to the device."""
    model, x, labels = on(kernel_device, *make_model(3, **TINY))
    if kernel_device == "cpu":
        monkeypatch.setattr(tensor_checks, "HOST_DEVICES", ())
        monkeypatch.setattr(tensor_checks, "dispatch_mode_count", lambda: 0)  # the plan runs under the mode
    with RefuseToWait():
        if engine == "autograd":
            model.cost(x, labels).backward()
        else:
            backprop.descend(model, x, labels, 0.5)
    assert launches == FUSED_STEP


def test_what_cannot_be_captured_or_replayed_raises(tiles, kernel_device):  # noqa: F811
    model, x, labels = on(kernel_device, *make_model(3, **TINY))
    too_many = DocumentCNN(image_size=12, kernel_size=3, channels=(4,), classes=1025).to(kernel_device)
    step = capture_step(model, x, labels, update=False)
    with pytest.raises(ValueError, match=r"x must be torch.float32 of shape \(3, 1, 12, 12\)"):
        step(x[:2], labels, 0.1)
    model.conv0.weight.data = model.conv0.weight.data.clone()
    with pytest.raises(RuntimeError, match="moved"):
        step(x, labels, 0.1)
    with pytest.raises(ValueError, match="labels must be int64"):
        capture_step(model, x, labels.int())
    with pytest.raises(ValueError, match=r"no plan computes the model: .* classes"):
        capture_step(too_many, x, labels)
