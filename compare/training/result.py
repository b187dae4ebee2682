"""What trainings side by side give: their settings, their runs, and how these differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compare.training.checks import FirstSteps, SameWeights, Zeros, joined, layers_of
from manualgrad.data import Dataset

HALF = 0.5  # the document's derivative of ReLU at 0
OURS, NATIVE, NUDGED = "ours", "native", "native nudged"
VISIBLE = 0.01  # a reader sees two curves apart where the costs differ by 1 %


@dataclass(frozen=True)
class Settings:
    """What all runs of a comparison share."""

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
        return self.epochs * self.steps_per_epoch


@dataclass(frozen=True, eq=False)
class Run:
    """One training. ``costs`` before each step; ``accuracies`` on the test images after each epoch, in percent.

    ``predicted``: (N,) the last answers to the test images. ``parameters``: the last weights and biases, in float64
    and in the document's convention. A cost that is not finite ends a run; it is then the last of ``costs``.
    """

    network: str
    subgradient: float
    seed: int
    costs: tuple[float, ...]
    accuracies: tuple[float, ...]
    predicted: Tensor
    parameters: dict[str, Tensor]

    @property
    def failure(self) -> str | None:
        if math.isfinite(self.costs[-1]):
            return None
        return (
            f"Seed {self.seed}: the cost of {self.network} with derivative {self.subgradient:g} at 0 is "
            f"{self.costs[-1]} at step {len(self.costs)}, and nothing was trained after that."
        )


@dataclass(frozen=True)
class Parting:
    """How the costs of two runs part: the largest difference and its step, and the first steps, from 1, at which
    they differ by more than the ``threshold`` of one cost's rounding and by more than 1 %; None: never."""

    seed: int
    largest: float
    largest_at: int
    beyond_rounding: int | None
    visible: int | None
    threshold: float


@dataclass(frozen=True)
class Distance:
    """Distances of one layer's last parameters, each divided by the norm of native's: ours from native, native from
    native nudged, and both from the start. Layer "all" is the whole network."""

    seed: int
    layer: str
    parted: float
    yardstick: float
    ours_moved: float
    native_moved: float


@dataclass(frozen=True)
class Disputed:
    """A test image that the two classify differently."""

    seed: int
    index: int
    label: int
    ours: int
    native: int


@dataclass(frozen=True, eq=False)
class TrainingComparison:
    """What :func:`compare_training` found. ``starts``: each seed's first parameters, as in ``Run.parameters``."""

    settings: Settings
    dataset: Dataset
    runs: tuple[Run, ...]
    starts: dict[int, dict[str, Tensor]]
    rounding: float
    first_steps: tuple[FirstSteps, ...]
    same_weights: tuple[SameWeights, ...]
    zeros: tuple[Zeros, ...]

    @property
    def failures(self) -> list[str]:
        checked = (*self.first_steps, *self.same_weights, *self.runs)
        return [each.failure for each in checked if each.failure]

    @property
    def complete_seeds(self) -> list[int]:
        """Those of which every run came to its end."""
        each = len(kinds_of(self.settings.subgradients))
        ended = [run.seed for run in self.runs if run.failure is None]
        return [seed for seed in self.settings.seeds if ended.count(seed) == each]

    def run(self, network: str, seed: int, subgradient: float = HALF) -> Run:
        return next(r for r in self.runs if (r.network, r.seed, r.subgradient) == (network, seed, subgradient))

    def parting(self, seed: int, other: str = OURS) -> Parting:
        """How ours, or another, parts from native."""
        pairs = zip(self.run(NATIVE, seed).costs, self.run(other, seed).costs, strict=True)
        apart = [(abs(a - b), max(1.0, abs(a)), abs(a)) for a, b in pairs]
        largest = max(difference for difference, _, _ in apart)
        return Parting(
            seed,
            largest,
            1 + next(n for n, (difference, _, _) in enumerate(apart) if difference == largest),
            next(
                (n for n, (difference, scale, _) in enumerate(apart, 1) if difference > self.rounding * scale), None
            ),
            next((n for n, (difference, _, cost) in enumerate(apart, 1) if difference > VISIBLE * cost), None),
            self.rounding,
        )

    def distances(self, seed: int) -> list[Distance]:
        start = self.starts[seed]
        ours, native, nudged = (self.run(name, seed).parameters for name in (OURS, NATIVE, NUDGED))
        layers = layers_of(start)

        def apart(one: dict[str, Tensor], two: dict[str, Tensor], which: Sequence[str]) -> float:
            return math.hypot(*((joined(one, layer) - joined(two, layer)).norm().item() for layer in which))

        rows = []
        for name, which in (*((layer, [layer]) for layer in layers), ("all", layers)):
            norm = math.hypot(*(joined(native, layer).norm().item() for layer in which))
            pairs = ((ours, native), (native, nudged), (ours, start), (native, start))
            rows.append(Distance(seed, name, *(apart(one, two, which) / norm for one, two in pairs)))
        return rows

    def disputed(self, seed: int, other: str = OURS) -> list[Disputed]:
        """The test images that ours, or another, and native classify differently after the last epoch."""
        ours, native = self.run(other, seed).predicted, self.run(NATIVE, seed).predicted
        labels = self.dataset.test.labels.cpu()
        return [
            Disputed(seed, n, labels[n].item(), ours[n].item(), native[n].item())
            for n in (ours != native).nonzero().flatten().tolist()
        ]

    def first_difference(self, seed: int, subgradient: float) -> int | None:
        """The first step, from 1, at which the cost of ours with another derivative at 0 differs in any bit."""
        pairs = zip(self.run(OURS, seed).costs, self.run(OURS, seed, subgradient).costs, strict=True)
        return next((n for n, (one, two) in enumerate(pairs, 1) if one != two), None)


def kinds_of(subgradients: Sequence[float]) -> list[tuple[str, float]]:
    """Every network that is trained from one seed; native first, as it tells whether the settings are at fault."""
    others = [s for s in subgradients if s != HALF]
    native = [(NATIVE, s) for s in others if s == 0]
    return [(NATIVE, HALF), (NUDGED, HALF), (OURS, HALF), *((OURS, s) for s in others), *native]
