"""Result of a comparison of trainings: settings, runs, and the differences between runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compare.training.checks import FirstSteps, SameWeights, ZeroCounts, layer_names, layer_vector
from manualgrad.data import Dataset

DEFAULT_SUBGRADIENT = 0.5  # DocumentCNN's derivative of ReLU at 0
OURS, NATIVE, NUDGED = "ours", "native", "native nudged"
VISIBLE_DIFFERENCE = 0.01  # two loss curves that differ by 1 % are visibly apart


@dataclass(frozen=True)
class Settings:
    """Settings that all runs of a comparison share."""

    seeds: tuple[int, ...]
    epochs: int
    batch_size: int
    learning_rate: float
    schedule: str
    dtype: torch.dtype
    device: str
    subgradients: tuple[float, ...]
    steps_per_epoch: int

    @property
    def steps(self) -> int:
        """Number of steps of a run."""
        return self.epochs * self.steps_per_epoch


@dataclass(frozen=True, eq=False)
class TrainingRun:
    """One training.

    Attributes:
        network: ``OURS``, ``NATIVE`` or ``NUDGED``.
        subgradient: derivative of ReLU at 0.
        losses: loss before each step. A loss that is not finite ends the run and is then the last one.
        accuracies: test accuracy after each epoch, in percent.
        predictions: (N,) classes predicted for the test images after the last epoch.
        parameters: last weights and biases, in float64 and in the convention of ``DocumentCNN``.
    """

    network: str
    subgradient: float
    seed: int
    losses: tuple[float, ...]
    accuracies: tuple[float, ...]
    predictions: Tensor
    parameters: dict[str, Tensor]

    @property
    def failure(self) -> str | None:
        """A sentence if a loss was not finite, or None."""
        if math.isfinite(self.losses[-1]):
            return None
        return (
            f"Seed {self.seed}: the loss of {self.network} with derivative {self.subgradient:g} at 0 is "
            f"{self.losses[-1]} at step {len(self.losses)}; all training stopped there."
        )


@dataclass(frozen=True)
class LossDifference:
    """Difference of the losses of two runs.

    Attributes:
        largest: largest difference.
        largest_step: its step, from 1.
        first_beyond_rounding: first step whose difference is more than the rounding of one loss; None: never.
        first_visible: first step whose difference is more than 1 %; None: never.
        threshold: relative rounding error of one loss.
    """

    seed: int
    largest: float
    largest_step: int
    first_beyond_rounding: int | None
    first_visible: int | None
    threshold: float


@dataclass(frozen=True)
class ParameterDistance:
    """Distances of one layer's last parameters, each over the norm of native's. Layer "all" is the whole network."""

    seed: int
    layer: str
    ours_to_native: float
    native_to_nudged: float
    ours_to_start: float
    native_to_start: float


@dataclass(frozen=True)
class Disagreement:
    """Test image that ours and native classify differently: its index, its label and both predictions."""

    seed: int
    index: int
    label: int
    ours: int
    native: int


@dataclass(frozen=True, eq=False)
class TrainingComparison:
    """Result of :func:`compare.training.side_by_side.compare_training`.

    Attributes:
        starts: first parameters by seed, as in ``TrainingRun.parameters``.
        rounding: expected relative rounding error of a loss.
    """

    settings: Settings
    dataset: Dataset
    runs: tuple[TrainingRun, ...]
    starts: dict[int, dict[str, Tensor]]
    rounding: float
    first_steps: tuple[FirstSteps, ...]
    same_weights: tuple[SameWeights, ...]
    zeros: tuple[ZeroCounts, ...]

    @property
    def failures(self) -> list[str]:
        """A sentence for each check that failed and each run that stopped."""
        checks = (*self.first_steps, *self.same_weights, *self.runs)
        return [check.failure for check in checks if check.failure]

    @property
    def complete_seeds(self) -> list[int]:
        """Seeds of which every run was completed."""
        runs_per_seed = len(networks_to_train(self.settings.subgradients))
        completed = [run.seed for run in self.runs if run.failure is None]
        return [seed for seed in self.settings.seeds if completed.count(seed) == runs_per_seed]

    def run(self, network: str, seed: int, subgradient: float = DEFAULT_SUBGRADIENT) -> TrainingRun:
        """Find the run of a network, a seed and a derivative of ReLU at 0."""
        return next(r for r in self.runs if (r.network, r.seed, r.subgradient) == (network, seed, subgradient))

    def loss_difference(self, seed: int, other: str = OURS) -> LossDifference:
        """Compare the losses of native and ``other``."""
        pairs = list(zip(self.run(NATIVE, seed).losses, self.run(other, seed).losses, strict=True))
        differences = [abs(a - b) for a, b in pairs]
        native = [abs(a) for a, _ in pairs]
        rows = list(enumerate(zip(differences, native, strict=True), 1))
        largest = max(differences)
        return LossDifference(
            seed,
            largest,
            1 + differences.index(largest),
            next((n for n, (difference, loss) in rows if difference > self.rounding * max(1.0, loss)), None),
            next((n for n, (difference, loss) in rows if difference > VISIBLE_DIFFERENCE * loss), None),
            self.rounding,
        )

    def distances(self, seed: int) -> list[ParameterDistance]:
        """Distances of the last parameters, for each layer and for the whole network."""
        start = self.starts[seed]
        ours, native, nudged = (self.run(name, seed).parameters for name in (OURS, NATIVE, NUDGED))
        all_layers = layer_names(start)

        def distance(first: dict[str, Tensor], second: dict[str, Tensor], layers: Sequence[str]) -> float:
            return math.hypot(
                *((layer_vector(first, layer) - layer_vector(second, layer)).norm().item() for layer in layers)
            )

        rows = []
        for name, layers in (*((layer, [layer]) for layer in all_layers), ("all", all_layers)):
            norm = math.hypot(*(layer_vector(native, layer).norm().item() for layer in layers))
            pairs = ((ours, native), (native, nudged), (ours, start), (native, start))
            rows.append(ParameterDistance(seed, name, *(distance(a, b, layers) / norm for a, b in pairs)))
        return rows

    def disagreements(self, seed: int, other: str = OURS) -> list[Disagreement]:
        """Test images that native and ``other`` classify differently after the last epoch."""
        ours, native = self.run(other, seed).predictions, self.run(NATIVE, seed).predictions
        labels = self.dataset.test.labels.cpu()
        return [
            Disagreement(seed, n, labels[n].item(), ours[n].item(), native[n].item())
            for n in (ours != native).nonzero().flatten().tolist()
        ]

    def first_changed_step(self, seed: int, subgradient: float) -> int | None:
        """First step, from 1, at which any bit of our loss differs between ``subgradient`` and the default one."""
        pairs = zip(self.run(OURS, seed).losses, self.run(OURS, seed, subgradient).losses, strict=True)
        return next((n for n, (a, b) in enumerate(pairs, 1) if a != b), None)


def networks_to_train(subgradients: Sequence[float]) -> list[tuple[str, float]]:
    """Networks and derivatives at 0 to train from one seed. If native, the first, fails, the settings are bad."""
    others = [s for s in subgradients if s != DEFAULT_SUBGRADIENT]
    native = [(NATIVE, s) for s in others if s == 0]
    return [*((name, DEFAULT_SUBGRADIENT) for name in (NATIVE, NUDGED, OURS)), *((OURS, s) for s in others), *native]
