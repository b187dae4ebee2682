"""Promise: in inference mode nothing is recorded, as in PyTorch, also where ``enable_grad`` is inside of it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

import manualgrad as mg


def test_enable_grad_in_inference_mode_records_nothing() -> None:
    made_before = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3), nn.Softmax(1)
    )
    x, labels = torch.randn(2, 1, 8, 8), torch.tensor([0, 2])
    expected = F.cross_entropy(made_before(x), labels)
    with torch.inference_mode(), torch.enable_grad():
        for ours in (mg.from_torch(made_before), mg.from_torch(made_before, copy_parameters=False)):
            loss = mg.softmax_cross_entropy(ours(x.clone()), labels)
            assert loss.is_inference() and not loss.requires_grad
            torch.testing.assert_close(loss, expected.detach())


def test_the_network_of_the_formula_sheet_in_inference_mode() -> None:
    model = mg.DocumentCNN(image_size=(8, 8), channels=(2,), hidden=(4,), classes=3)
    x, labels = torch.randn(2, 1, 8, 8), torch.tensor([0, 2])
    expected = model.cost(x, labels).detach()
    with torch.inference_mode(), torch.enable_grad():
        for copied in (model, mg.DocumentCNN(image_size=(8, 8), channels=(2,), hidden=(4,), classes=3)):
            copied.load_state_dict(model.state_dict())
            loss, logits = copied.cost(x.clone(), labels), copied(x.clone())
            assert not loss.requires_grad and not logits.requires_grad
            torch.testing.assert_close(loss, expected)
