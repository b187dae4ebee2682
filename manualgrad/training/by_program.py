"""When the steps of a run are taken by one program each: where they are w − η ∂J/∂w of every weight, and no more."""

from __future__ import annotations

from operator import is_
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from manualgrad.data import Dataset
from manualgrad.models import DocumentCNN
from manualgrad.network import guards
from manualgrad.network.descent import Descent, StepStats
from manualgrad.training.steps import GradientDescent, normalised


def descent_of(model: DocumentCNN, dataset: Dataset, batch_size: int) -> Descent | None:
    """Steps on such batches by one program each; None where kernels do not serve the model or the data."""
    train = dataset.train
    if train.images.shape[1] != 1 or len(train) < batch_size:
        return None
    x = normalised(train.images[:1], dataset).expand(batch_size, -1, -1, -1)
    found = guards.plan_of(model, x)
    if found is None:
        return None
    return Descent(*found, train.images, train.labels, 255 * dataset.mean, 255 * dataset.std)


class ByProgram:
    """The steps of one epoch, on the images whose numbers ``order`` has.

    ``descent`` is None where the optimiser does more, or less, than w − η ∂J/∂w of every weight, or kernels do not
    serve.
    """

    def __init__(
        self, model: DocumentCNN, optimizer: Optimizer, dataset: Dataset, batch_size: int, order: Tensor
    ) -> None:
        self._situation = _situation(model, optimizer)
        self.descent = descent_of(model, dataset, batch_size) if _steps_every_weight(model, optimizer) else None
        if self.descent is not None:
            self.descent.begin(order)

    def step(self, model: DocumentCNN, optimizer: Optimizer, first: int, rate: float) -> StepStats | None:
        """One step of size ``rate``, on the images from number ``first`` of the order; None, and nothing is done,
        where all is not as it was when the program was made, or the program cannot take it."""
        if self.descent is None:
            return None
        now = _situation(model, optimizer)
        if len(now) != len(self._situation) or not all(map(is_, now, self._situation)):
            return None
        return self.descent.step(first, rate)


def _steps_every_weight(model: DocumentCNN, optimizer: Optimizer) -> bool:
    """Whether the optimiser is plain gradient descent, of each weight once, and nobody listens to it."""
    if type(optimizer) is not GradientDescent or len(optimizer.param_groups) > 1 or _has_hooks(optimizer):
        return False
    weights = [w for f in model.weighted() for w in (f.weight, f.bias)]
    stepped = [w for group in optimizer.param_groups for w in group["params"] if w.requires_grad]
    return len(stepped) == len(weights) and set(map(id, stepped)) == set(map(id, weights))


def _situation(model: DocumentCNN, optimizer: Optimizer) -> list[Any]:
    """All that decides whether a step may be taken by the program that was made, as the very objects."""
    groups = optimizer.param_groups
    weights = [w for group in groups for w in group["params"]]
    flags = [w.requires_grad for w in weights]
    return [model, optimizer, len(groups), _has_hooks(optimizer), *weights, *flags, *guards.guard_values(model)]


def _has_hooks(optimizer: Optimizer) -> bool:
    return bool(optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks)
