"""Steps of training on the bundled digits, between which the page looks at one digit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from manualgrad import backprop
from manualgrad.data import Dataset
from manualgrad.models import DocumentCNN

STEPS = (0, 1, 10, 100, 1000)
BATCH_SIZE, ETA = 64, 0.1


def normalize(images: Tensor, dataset: Dataset) -> Tensor:
    """Convert uint8 images to float32 with mean 0 and standard deviation 1 over the training images."""
    return (images.float() / 255 - dataset.mean) / dataset.std


def train(model: DocumentCNN, dataset: Dataset, steps: Sequence[int], seed: int, costs: list[float]) -> Iterator[int]:
    """Yield each number of ``steps``, in ascending order, when the model has taken that many steps.

    A step is ``backprop.descend`` on BATCH_SIZE random training images with the learning rate ETA. The cost of each
    batch before its step is appended to ``costs``.
    """
    generator = torch.Generator().manual_seed(seed)
    for step in range(max(steps) + 1):
        if step in steps:
            yield step
        if step < max(steps):
            indices = torch.randint(len(dataset.train), (BATCH_SIZE,), generator=generator)
            x = normalize(dataset.train.images[indices], dataset)
            costs.append(backprop.descend(model, x, dataset.train.labels[indices], ETA).cost.item())
