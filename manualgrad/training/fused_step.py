"""Fused training steps: forward, backward and update as one program of CPU kernels.

This works if a step is exactly w ← w − η ∂J/∂w for every weight of the model. The program is made once per epoch, and
each step checks that everything it was made for is unchanged.
"""

from __future__ import annotations

from operator import is_
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from manualgrad._torch_compat import optimizer_has_hooks
from manualgrad.data import Dataset
from manualgrad.models import DocumentCNN
from manualgrad.network import guards
from manualgrad.network.descent import Descent, StepStats
from manualgrad.network.plan import Plan
from manualgrad.training.batches import normalize
from manualgrad.training.optimizers import GradientDescent


def make_descent(model: DocumentCNN, dataset: Dataset, batch_size: int) -> Descent | None:
    """Make the program for steps on ``batch_size`` training images; None if kernels do not support model or data."""
    train = dataset.train
    if train.images.shape[1] != 1 or len(train) < batch_size:
        return None
    x = normalize(train.images[:1], dataset).expand(batch_size, -1, -1, -1)
    planned = model.find_plan(x)
    if isinstance(planned, str):
        return None
    plan, parameters = planned
    if not isinstance(plan, Plan):  # a plan for CUDA
        return None
    return Descent(plan, parameters, train.images, train.labels, 255 * dataset.mean, 255 * dataset.std)


class FusedStep:
    """Fused steps for the batches of one epoch.

    Args:
        indices: indices of the epoch's images, (n,) int64, in training order.

    Attributes:
        descent: the program, or None if the optimizer or the model needs an unfused step.
    """

    def __init__(
        self, model: DocumentCNN, optimizer: Optimizer, dataset: Dataset, batch_size: int, indices: Tensor
    ) -> None:
        self.guard_values = guard_values(model, optimizer)
        is_supported = type(optimizer) is GradientDescent and updates_every_weight(model, optimizer)
        self.descent = make_descent(model, dataset, batch_size) if is_supported else None
        if self.descent is not None:
            self.descent.begin_epoch(indices)

    def step(self, model: DocumentCNN, optimizer: Optimizer, first: int, learning_rate: float) -> StepStats | None:
        """Take a step on the batch that begins at position ``first`` of the epoch's indices.

        Return None and change nothing if a guard value changed, or if the program does not support the batch.
        """
        if self.descent is None:
            return None
        values = guard_values(model, optimizer)
        if len(values) != len(self.guard_values) or not all(map(is_, values, self.guard_values)):
            return None
        return self.descent.step(first, learning_rate)


def updates_every_weight(model: DocumentCNN, optimizer: Optimizer) -> bool:
    """Return True if the optimizer has each weight of the model once, in one group, none frozen, and no hooks."""
    if len(optimizer.param_groups) > 1 or optimizer_has_hooks(optimizer):
        return False
    weights = [w for layer in model.layers_with_weights() for w in (layer.weight, layer.bias)]
    updated = [w for group in optimizer.param_groups for w in group["params"] if w.requires_grad]
    return len(updated) == len(weights) and set(map(id, updated)) == set(map(id, weights))


def guard_values(model: DocumentCNN, optimizer: Optimizer) -> list[Any]:
    """Objects on which the program depends. It is valid as long as each is the identical object."""
    groups = optimizer.param_groups
    weights = [w for group in groups for w in group["params"]]
    flags = [w.requires_grad for w in weights]
    has_hooks = optimizer_has_hooks(optimizer)
    return [model, optimizer, len(groups), has_hooks, *weights, *flags, *guards.guard_values(model)]
