"""Training of ``DocumentCNN`` and its native twin side by side: same data, same weights, same batches in the same
order, over several seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compare.native_network import from_native, native_twin
from compare.random_state import random_devices
from compare.training.arguments import check_arguments
from compare.training.checks import (
    FLOAT64_STEPS,
    FirstSteps,
    SameWeights,
    ZeroCounts,
    check_gradients,
    count_zeros,
    expected_rounding,
)
from compare.training.result import (
    DEFAULT_SUBGRADIENT,
    NATIVE,
    NUDGED,
    OURS,
    Settings,
    TrainingComparison,
    TrainingRun,
    networks_to_train,
)
from manualgrad.data import Dataset
from manualgrad.functional import softmax_cross_entropy
from manualgrad.models import DocumentCNN
from manualgrad.training.batches import minibatches, normalize
from manualgrad.training.optimizers import make_lr_scheduler

CHECKED_BATCHES = 8  # on which gradients and zeros are checked, before the first step and after each epoch


def compare_training(
    dataset: Dataset,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    epochs: int = 2,
    batch_size: int = 64,
    learning_rate: float = 0.25,
    schedule: str = "one-cycle",
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    limit: int | None = None,
    subgradients: Sequence[float] = (0, 0.5, 1),
    make_model: Callable[..., DocumentCNN] = DocumentCNN,
    progress: Any = None,
) -> TrainingComparison:
    """Train both networks for every seed by plain gradient descent, and native once more from nudged weights.

    Nudged weights differ by one unit in the last place: the difference between the two native runs shows the effect
    of rounding alone. The derivative of ReLU at 0 is 1/2 in these three runs (``torch.maximum`` in native). Ours is
    also trained with the other ``subgradients``, and native with 0 (``nn.ReLU``) if that is among them.

    Recommended: MNIST with ``limit=40_000``, which takes 4.5 minutes on 2 cores; for a quick look, the bundled sample
    with ``seeds=(0, 1), limit=1000``, which takes 15 seconds.

    Args:
        dataset: training and test images.
        limit: number of training images to use; None means all.
        subgradients: derivatives of ReLU at 0.
        make_model: builds our network; called with the arguments ``image_size``, ``classes``, ``subgradient`` and
            ``fused`` of :class:`DocumentCNN`.
        progress: tqdm bar, or an object with its ``total``, ``update`` and ``set_description_str``; counts steps.

    Raises:
        TypeError: ``dataset`` is not a Dataset, or a number has the wrong type.
        ValueError: an argument has a value that is not allowed; the message names it, what is allowed, and its value.
    """
    settings, dataset = check_arguments(
        dataset, seeds, epochs, batch_size, learning_rate, schedule, dtype, device, subgradients, limit
    )
    shape = {"image_size": tuple(dataset.train.images.shape[-2:]), "classes": len(dataset.classes)}

    def make(seed: int, subgradient: float = DEFAULT_SUBGRADIENT, **options: Any) -> DocumentCNN:
        torch.manual_seed(seed)
        model = make_model(**shape, subgradient=subgradient, **options)
        return model.to(device=settings.device, dtype=settings.dtype)

    trainer = _Trainer(dataset, settings, make, progress)
    networks = networks_to_train(settings.subgradients)
    if progress is not None:
        progress.total = len(settings.seeds) * (len(networks) * settings.steps + 3 * trainer.num_first_steps)
    # With TF32, native's convolutions would be a thousand times less exact than with float32.
    with (
        torch.random.fork_rng(devices=random_devices()),
        torch.backends.cudnn.flags(True, deterministic=True, allow_tf32=False),
    ):
        for seed in settings.seeds:
            trainer.compare_first_steps(seed)
            for network, subgradient in networks:
                if trainer.train(network, subgradient, seed).failure:
                    return trainer.result()
    return trainer.result()


class _Trainer:
    """Trains one network after another on the same batches, and collects runs and checks."""

    def __init__(self, dataset: Dataset, settings: Settings, make: Callable[..., DocumentCNN], progress: Any) -> None:
        self.dataset, self.settings, self.make, self.progress = dataset, settings, make, progress
        self.num_first_steps, self.rounding = min(FLOAT64_STEPS, settings.steps), 0.0
        self.runs: list[TrainingRun] = []
        self.starts: dict[int, dict[str, Tensor]] = {}
        self.first_steps: list[FirstSteps] = []
        self.same_weights: list[SameWeights] = []
        self.zeros: list[ZeroCounts] = []

    def compare_first_steps(self, seed: int) -> None:
        """Train the first steps of ours, native and native nudged in float64, and keep their losses."""
        model = self.make(seed)
        self.rounding = expected_rounding(model, self.settings.dtype)
        self.starts[seed] = _to_float64(dict(model.named_parameters()))
        float64_model = model.double()
        losses = []
        for name, network in (
            (OURS, float64_model),
            (NATIVE, native_twin(float64_model)),
            (NUDGED, nudge(native_twin(float64_model), seed)),
        ):
            self._show(f"seed {seed}: first steps of {name} in float64")
            losses.append(tuple(islice(self._losses(network, name, seed), self.num_first_steps)))
        # A loss that is not finite ends a run; the losses of the missing steps are NaN.
        losses = [run + (math.nan,) * (self.num_first_steps - len(run)) for run in losses]
        self.first_steps.append(FirstSteps(seed, *losses, expected_rounding(float64_model, torch.float64)))

    def train(self, name: str, subgradient: float, seed: int) -> TrainingRun:
        """Train one network, up to the last step or to a loss that is not finite."""
        model = self.make(seed, subgradient)
        network: nn.Module = model
        if name != OURS:
            network = native_twin(model).to(memory_format=torch.channels_last)  # the faster layout of native
            if name == NUDGED:
                nudge(network, seed)
        is_checked = (name, subgradient) == (OURS, DEFAULT_SUBGRADIENT)
        if is_checked:
            self._check(model, seed, 0)
        losses: list[float] = []
        accuracies: list[float] = []
        predictions = torch.empty(0, dtype=torch.long)
        self._show(f"seed {seed}: {name}, derivative {subgradient:g} at 0")
        for loss in self._losses(network, name, seed):
            losses.append(loss)
            if len(losses) % self.settings.steps_per_epoch == 0 and math.isfinite(loss):
                predictions = self._predict(network)
                is_correct = predictions == self.dataset.test.labels.cpu()
                accuracies.append(100 * is_correct.double().mean().item())
                if is_checked:
                    self._check(model, seed, len(accuracies))
        parameters = dict(network.named_parameters())
        parameters = _to_float64(parameters if name == OURS else from_native(parameters, model))
        run = TrainingRun(name, subgradient, seed, tuple(losses), tuple(accuracies), predictions, parameters)
        self.runs.append(run)
        return run

    def result(self) -> TrainingComparison:
        checks = (tuple(check) for check in (self.first_steps, self.same_weights, self.zeros))
        return TrainingComparison(self.settings, self.dataset, tuple(self.runs), self.starts, self.rounding, *checks)

    def _losses(self, network: nn.Module, name: str, seed: int) -> Iterator[float]:
        """Train ``network`` and yield each step's loss before its update; stop after a loss that is not finite."""
        loss_function = softmax_cross_entropy if name == OURS else F.cross_entropy
        optimizer = torch.optim.SGD(network.parameters(), lr=self.settings.learning_rate)
        schedule = make_lr_scheduler(self.settings.schedule, optimizer, self.settings.steps)
        order = torch.Generator().manual_seed(seed)
        for _ in range(self.settings.epochs):
            indices = torch.randperm(len(self.dataset.train), generator=order)
            for x, labels in minibatches(self.dataset, indices, self.settings.batch_size):
                optimizer.zero_grad()
                loss = loss_function(network(x.to(next(network.parameters()).dtype)), labels)
                loss.backward()
                optimizer.step()
                schedule.step()
                if self.progress is not None:
                    self.progress.update(1)
                yield loss.item()
                if not math.isfinite(loss.item()):
                    return

    def _check(self, model: DocumentCNN, seed: int, epoch: int) -> None:
        """Compare gradients and count zeros at the present weights of ``model``, on randomly drawn batches."""
        generator, train = torch.Generator().manual_seed(seed), self.dataset.train
        indices = torch.randint(len(train), (CHECKED_BATCHES, self.settings.batch_size), generator=generator)
        batches = [
            (self._inputs(train.images[batch], model), train.labels[batch])
            for batch in indices.to(train.labels.device)
        ]
        unfused = self.make(seed, model.subgradient, fused=False)
        unfused.load_state_dict(model.state_dict())
        self.same_weights += check_gradients(model, batches, seed, epoch)
        self.zeros += count_zeros(unfused, batches, seed, epoch)

    @torch.no_grad()
    def _predict(self, network: nn.Module) -> Tensor:
        batches = self.dataset.test.images.split(250)
        return torch.cat([network(self._inputs(images, network)).argmax(1).cpu() for images in batches])

    def _inputs(self, images: Tensor, network: nn.Module) -> Tensor:
        return normalize(images, self.dataset).to(next(network.parameters()).dtype)

    def _show(self, description: str) -> None:
        if self.progress is not None:
            self.progress.set_description_str(description)


@torch.no_grad()
def nudge(network: nn.Module, seed: int) -> nn.Module:
    """Move every parameter of ``network`` to the next number of its dtype, up or down at random; return it."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        up = torch.rand(parameter.shape, generator=generator) < 0.5
        towards = torch.where(up, math.inf, -math.inf).to(parameter)
        parameter.copy_(torch.nextafter(parameter, towards))
    return network


def _to_float64(named: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", torch.float64, copy=True) for name, tensor in named.items()}
