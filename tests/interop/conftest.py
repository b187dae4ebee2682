"""A tiny model in place of those of torchvision."""

from __future__ import annotations

import pytest
import torch
from torch import nn


class Tiny(nn.Sequential):
    """A small network for the command: a shared in-place ReLU, pooling, batch norm, dropout."""

    def __init__(self) -> None:
        relu = nn.ReLU(inplace=True)
        super().__init__(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), relu, nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), relu, nn.Flatten(),
            nn.Dropout(), nn.LazyLinear(1000),
        )  # fmt: skip
        self(torch.zeros(2, 3, 16, 16))


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torchvision build this model, whatever its name."""
    monkeypatch.setattr("torchvision.models.get_model", lambda name, weights: Tiny())
