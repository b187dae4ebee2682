"""Accuracy for accuracy: the document's network and its native twin trained on the same data, from the same weights
and the same batches in the same order, over several seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compare.native import from_native, native_twin
from compare.training.checks import (
    STEPS,
    FirstSteps,
    SameWeights,
    Zeros,
    gradients_at,
    rounding_of,
    zeros_at,
)
from compare.training.result import HALF, NATIVE, NUDGED, OURS, Run, Settings, TrainingComparison, kinds_of
from manualgrad.data import Dataset
from manualgrad.functional import softmax_cross_entropy
from manualgrad.models import DocumentCNN
from manualgrad.training.steps import SCHEDULES, minibatches, normalised, step_sizes

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
INSPECTED = 8  # batches on which gradients and zeros are looked at before the first step and after each epoch


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
    """Trains both networks for every seed by plain gradient descent, and native once more from weights that differ by
    one unit in the last place: how far that one parts from native is what rounding alone does.

    The derivative of ReLU at 0 is the document's 1/2 in these three (natively ``torch.maximum``); ours is trained
    with the other ``subgradients`` too, and native with 0 (``nn.ReLU``) if that is among them.

    Recommended: MNIST with ``limit=40_000`` (made for 4.5 minutes on 2 cores); quick, the bundled sample with
    ``seeds=(0, 1), limit=1000`` (for 15 seconds).

    Args:
        limit: use the first so many training images only.
        make_model: ours; called with the arguments ``image_size``, ``classes``, ``subgradient`` and ``fused`` of
            :class:`DocumentCNN`.
        progress: something like a tqdm bar, for steps.

    Raises:
        TypeError: ``dataset`` is not one, or a number is of the wrong kind.
        ValueError: settings that cannot be; the message names the argument, what it may be, and what came.
    """
    settings, dataset = _checked(
        dataset, seeds, epochs, batch_size, learning_rate, schedule, dtype, device, subgradients, limit
    )
    shape = {"image_size": tuple(dataset.train.images.shape[-2:]), "classes": len(dataset.classes)}

    def make(seed: int, subgradient: float = HALF, **more: Any) -> DocumentCNN:
        torch.manual_seed(seed)
        model = make_model(**shape, subgradient=subgradient, **more)
        return model.to(device=settings.device, dtype=settings.dtype)

    trainer = _Trainer(dataset, settings, make, progress)
    kinds = kinds_of(settings.subgradients)
    if progress is not None:
        progress.total = len(settings.seeds) * (len(kinds) * settings.steps + 3 * trainer.first)
    # TF32 would make native's convolutions a thousand times less exact than float32 is.
    with torch.random.fork_rng(devices=[]), torch.backends.cudnn.flags(True, deterministic=True, allow_tf32=False):
        for seed in settings.seeds:
            trainer.begin(seed)
            for network, subgradient in kinds:
                if trainer.train(network, subgradient, seed).failure:
                    return trainer.result()
    return trainer.result()


class _Trainer:
    """Trains one network after another on the same batches, and collects what is seen on the way."""

    def __init__(self, dataset: Dataset, settings: Settings, make: Callable[..., DocumentCNN], progress: Any) -> None:
        self.dataset, self.settings, self.make, self.progress = dataset, settings, make, progress
        self.first, self.rounding = min(STEPS, settings.steps), 0.0
        self.runs: list[Run] = []
        self.starts: dict[int, dict[str, Tensor]] = {}
        self.first_steps: list[FirstSteps] = []
        self.same_weights: list[SameWeights] = []
        self.zeros: list[Zeros] = []

    def begin(self, seed: int) -> None:
        """The first steps in float64."""
        model = self.make(seed)
        self.rounding = rounding_of(model, self.settings.dtype)
        self.starts[seed] = _exactly(dict(model.named_parameters()))
        exact = model.double()
        costs = []
        for name, network in (
            (OURS, exact),
            (NATIVE, native_twin(exact)),
            (NUDGED, nudged(native_twin(exact), seed)),
        ):
            self._say(f"seed {seed}: first steps of {name} in float64")
            costs.append(tuple(islice(self._costs(network, name, seed), self.first)))
        # A cost that is not finite ends a run: what is missing behind it is as little a number.
        costs = [each + (math.nan,) * (self.first - len(each)) for each in costs]
        self.first_steps.append(FirstSteps(seed, *costs, rounding_of(exact, torch.float64)))

    def train(self, name: str, subgradient: float, seed: int) -> Run:
        """One run, from its first step to its last or to a cost that is not finite."""
        model = self.make(seed, subgradient)
        network: nn.Module = model
        if name != OURS:
            network = native_twin(model).to(memory_format=torch.channels_last)  # its faster layout
            if name == NUDGED:
                nudged(network, seed)
        inspected = (name, subgradient) == (OURS, HALF)
        if inspected:
            self._inspect(model, seed, 0)
        costs: list[float] = []
        accuracies: list[float] = []
        predicted = torch.empty(0, dtype=torch.long)
        self._say(f"seed {seed}: {name}, derivative {subgradient:g} at 0")
        for cost in self._costs(network, name, seed):
            costs.append(cost)
            if len(costs) % self.settings.steps_per_epoch == 0 and math.isfinite(cost):
                predicted = self._predicted(network)
                accuracies.append(100 * (predicted == self.dataset.test.labels.cpu()).double().mean().item())
                if inspected:
                    self._inspect(model, seed, len(accuracies))
        parameters = dict(network.named_parameters())
        parameters = _exactly(parameters if name == OURS else from_native(parameters, model))
        run = Run(name, subgradient, seed, tuple(costs), tuple(accuracies), predicted, parameters)
        self.runs.append(run)
        return run

    def result(self) -> TrainingComparison:
        found = (tuple(each) for each in (self.first_steps, self.same_weights, self.zeros))
        return TrainingComparison(self.settings, self.dataset, tuple(self.runs), self.starts, self.rounding, *found)

    def _costs(self, network: nn.Module, name: str, seed: int) -> Iterator[float]:
        """Trains ``network``: each cost comes after the step that it led to; one that is not finite is the last."""
        cost_of = softmax_cross_entropy if name == OURS else F.cross_entropy
        optimizer = torch.optim.SGD(network.parameters(), lr=self.settings.learning_rate)
        schedule = step_sizes(self.settings.schedule, optimizer, self.settings.steps)
        order = torch.Generator().manual_seed(seed)
        for _ in range(self.settings.epochs):
            chosen = torch.randperm(len(self.dataset.train), generator=order)
            for x, labels in minibatches(self.dataset, chosen, self.settings.batch_size):
                optimizer.zero_grad()
                cost = cost_of(network(x.to(next(network.parameters()).dtype)), labels)
                cost.backward()
                optimizer.step()
                schedule.step()
                if self.progress is not None:
                    self.progress.update(1)
                yield cost.item()
                if not math.isfinite(cost.item()):
                    return

    def _inspect(self, model: DocumentCNN, seed: int, epoch: int) -> None:
        """Gradients and zeros at the weights that ``model`` has now, on batches drawn with repetition."""
        generator, train = torch.Generator().manual_seed(seed), self.dataset.train
        chosen = torch.randint(len(train), (INSPECTED, self.settings.batch_size), generator=generator)
        batches = [
            (self._x(train.images[some], model), train.labels[some]) for some in chosen.to(train.labels.device)
        ]
        unfused = self.make(seed, model.subgradient, fused=False)
        unfused.load_state_dict(model.state_dict())
        self.same_weights += gradients_at(model, batches, seed, epoch)
        self.zeros += zeros_at(unfused, batches, seed, epoch)

    @torch.no_grad()
    def _predicted(self, network: nn.Module) -> Tensor:
        parts = self.dataset.test.images.split(250)
        return torch.cat([network(self._x(images, network)).argmax(1).cpu() for images in parts])

    def _x(self, images: Tensor, network: nn.Module) -> Tensor:
        return normalised(images, self.dataset).to(next(network.parameters()).dtype)

    def _say(self, what: str) -> None:
        if self.progress is not None:
            self.progress.set_description_str(what)


@torch.no_grad()
def nudged(network: nn.Module, seed: int) -> nn.Module:
    """``network`` with every parameter moved to the next number of its dtype, up or down as ``seed`` draws."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        up = torch.rand(parameter.shape, generator=generator) < 0.5
        towards = torch.where(up, math.inf, -math.inf).to(parameter)
        parameter.copy_(torch.nextafter(parameter, towards))
    return network


def _exactly(named: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", torch.float64, copy=True) for name, tensor in named.items()}


def _checked(
    dataset: Any, seeds: Any, epochs: Any, batch_size: Any, learning_rate: Any, schedule: Any, dtype: Any,
    device: Any, subgradients: Any, limit: Any,
) -> tuple[Settings, Dataset]:  # fmt: skip
    """The settings and the data to train on; TypeError or ValueError names what cannot be."""
    if not isinstance(dataset, Dataset):
        raise TypeError(f"compare_training: dataset must be a manualgrad.data.Dataset, got {type(dataset).__name__}")
    seeds, subgradients = tuple(seeds), tuple(subgradients)
    for name, number, least in (
        ("epochs", epochs, 1),
        ("batch_size", batch_size, 1),
        *([("limit", limit, 1)] if limit is not None else []),
        *(("each of seeds", seed, 0) for seed in seeds),
    ):
        if not isinstance(number, int) or isinstance(number, bool):
            raise TypeError(f"compare_training: {name} must be a whole number, got {number!r}")
        if number < least:
            raise ValueError(f"compare_training: {name} must be at least {least}, got {number}")
    device = torch.device(device)
    for wrong, message in (
        (not seeds, "seeds must name at least one"),
        (len(set(seeds)) != len(seeds), f"seeds must differ from each other, got {seeds}"),
        (not 0 < learning_rate < math.inf, f"learning_rate must be a number above 0, got {learning_rate!r}"),
        (schedule not in SCHEDULES, f"schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}"),
        (dtype not in DTYPES, f"dtype must be one of {', '.join(str(d)[6:] for d in DTYPES)}, got {dtype}"),
        (not all(0 <= s <= 1 for s in subgradients), f"subgradients must lie in 0..1, got {subgradients}"),
        (len(set(subgradients)) != len(subgradients), f"subgradients must differ, got {subgradients}"),
        (device.type == "cuda" and not torch.cuda.is_available(), "device is cuda, but PyTorch finds no CUDA device"),
        (min(len(dataset.train), len(dataset.test)) < 1, "dataset must have training and test images"),
    ):
        if wrong:
            raise ValueError(f"compare_training: {message}")
    if limit is not None:
        dataset = dataset.limited(limit)
    steps = -(-len(dataset.train) // batch_size)
    settings = Settings(
        seeds, epochs, batch_size, learning_rate, schedule, dtype, str(device), subgradients, steps_per_epoch=steps
    )
    return settings, dataset.to(device)
