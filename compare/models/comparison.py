"""Comparison of one model over several seeds, and the limits that its gradients must keep.

In float32 a flip moves a gradient more than all rounding does. So two things have a limit: the error from rounding
alone, as a ratio of the medians over the seeds, and the number of flips. Errors with flips are shown and have no
limit: with one flip in a seed or none, the ratio of two medians is chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, lgamma, log
from statistics import median
from typing import Any

import torch

import manualgrad as mg
from compare.models.gradient_errors import Float32Errors, SeedErrors, measure_errors
from compare.models.torchvision_models import (
    ModelOptions,
    convert_model,
    make_native_model,
    parameters_in_forward_order,
)
from compare.models.training_step import StepBenchmark, benchmark_training_step
from compare.random_state import random_devices

FLOAT64_LIMIT = 1e-9  # distance over the norm of the whole gradient: rounding is 1e-14, a wrong formula 1e-3 or more
FLOAT32_LIMIT = 2.0  # ratio to native's error, and to its flips: the same sums in another order are as good
MIN_PROBABILITY = 0.01  # of as many flips, if ours flips FLOAT32_LIMIT times as often as native
NEGLIGIBLE_NORM = (
    1e-9  # fraction of the whole norm: such a gradient, as a bias's before a batch norm, is 0 but for rounding
)


@dataclass(frozen=True)
class LimitCheck:
    """One error measure and its limit.

    Attributes:
        measure: name of the measure.
        ours: median error over the seeds in float32; largest error over the seeds in float64.
        native: median error of native; None in float64, where native is the oracle.
        median_of_ratios: median over the seeds of ours / native; not judged.
        limit: largest accepted ratio, or largest accepted error in float64.
    """

    measure: str
    ours: float
    native: float | None
    median_of_ratios: float | None
    limit: float

    @property
    def ratio(self) -> float | None:
        """Ratio of the two medians; None in float64."""
        return None if self.native is None else _ratio(self.ours, self.native)

    @property
    def is_within_limit(self) -> bool:
        """True if the ratio, or the error in float64, is at most the limit; False for NaN."""
        return (self.ours if self.ratio is None else self.ratio) <= self.limit  # false for NaN

    def __str__(self) -> str:
        if self.ratio is None:
            return (
                f"{self.measure}: ours differs from native by {self.ours:.2g} of the gradient's norm; the limit is "
                f"{self.limit:g}"
            )
        medians = f"median error {self.ours:.2g} of ours and {self.native:.2g} of native"
        return f"{self.measure}: {medians}, a ratio of {self.ratio:.3g}; the limit is {self.limit:g}"


@dataclass(frozen=True)
class FlipCheck(LimitCheck):
    """Flips over all seeds, ``ours`` and ``native``, whose rates may have the ratio ``limit``.

    At that ratio, ours has a binomial number of the flips on both sides, with probability limit / (limit + 1)."""

    @property
    def is_within_limit(self) -> bool:
        """True if so many flips of ours have a probability of at least ``MIN_PROBABILITY``."""
        assert self.native is not None
        ours, n, p = round(self.ours), round(self.ours + self.native), self.limit / (self.limit + 1)
        logarithms = (  # of the probabilities of k flips: their factors exceed a float from 1,030 flips on
            lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1) + k * log(p) + (n - k) * log(1 - p)
            for k in range(ours, n + 1)
        )
        return sum(map(exp, logarithms)) >= MIN_PROBABILITY

    def __str__(self) -> str:
        return (
            f"{self.measure}: {self.ours:.0f} of ours and {self.native:.0f} of native; so many have a probability "
            f"below {MIN_PROBABILITY:.0%} even if ours flips {self.limit:g} times as often"
        )


@dataclass(frozen=True)
class ModelComparison:
    """Result of comparing one model.

    Attributes:
        name: torchvision's name.
        options: size and number of images.
        parameters: names of the parameters in the order of the forward pass.
        conversion: what from_torch did with each layer.
        seeds: errors of each seed.
        step: time and memory of a training step.
    """

    name: str
    options: ModelOptions
    parameters: Sequence[str]
    conversion: mg.interop.Report
    seeds: Sequence[SeedErrors]
    step: StepBenchmark

    @property
    def limit_checks(self) -> list[LimitCheck]:
        """Checks of the whole gradient in float64, in float32 from rounding only, and of the flips."""
        float64_error = max((errors.float64_error for errors in self.seeds), key=_nan_last)
        ours, native = ([e.total_rounding for e in self.float32_errors(side)] for side in ("ours", "native"))
        of_ratios = median(_ratio(a, b) for a, b in zip(ours, native, strict=True))
        return [
            LimitCheck("float64", float64_error, None, None, FLOAT64_LIMIT),
            LimitCheck("float32, rounding only", median(ours), median(native), of_ratios, FLOAT32_LIMIT),
            FlipCheck("flips", self.num_flips("ours"), self.num_flips("native"), None, FLOAT32_LIMIT),
        ]

    @property
    def failures(self) -> list[str]:
        """A sentence for each limit that is exceeded."""
        return [f"{self.name}: {check}" for check in self.limit_checks if not check.is_within_limit]

    def float32_errors(self, side: str) -> list[Float32Errors]:
        """Errors of the float32 runs of ``side``, "ours" or "native", for each seed."""
        return [getattr(errors, side) for errors in self.seeds]

    def norm_fraction(self, parameter: str) -> float:
        """Norm of the parameter's gradient over that of the whole gradient: median over the seeds."""
        return median(errors.norm_fractions[parameter] for errors in self.seeds)

    def median_error(self, side: str, kind: str, parameter: str) -> float | None:
        """Median over the seeds of "by_parameter" or "rounding_by_parameter"; None if the gradient is negligible."""
        if self.norm_fraction(parameter) < NEGLIGIBLE_NORM:
            return None
        return median(getattr(errors, kind)[parameter] for errors in self.float32_errors(side))

    def num_flips(self, side: str) -> int:
        """Number of flips in all seeds and layers."""
        return sum(sum(errors.flips.values()) for errors in self.float32_errors(side))


def compare_models(
    names: Sequence[str], options: ModelOptions, seeds: Sequence[int], progress: Any
) -> list[ModelComparison]:
    """Compare each model on each seed, then benchmark one training step of it; ``progress`` is a tqdm bar.

    Raises:
        CaseError: a model does not run on such images; raised before any model is measured.
    """
    with torch.random.fork_rng(devices=random_devices()):
        parameters = {name: parameters_in_forward_order(name, options) for name in names}
        progress.total = len(names) * (len(seeds) + 1)
        return [_compare_model(name, options, parameters[name], seeds, progress) for name in names]


def _compare_model(
    name: str, options: ModelOptions, parameters: Sequence[str], seeds: Sequence[int], progress: Any
) -> ModelComparison:
    seed_errors = []
    for seed in seeds:
        progress.set_description_str(f"{name}: seed {seed}")
        seed_errors.append(measure_errors(name, seed, options))
        progress.update()
    progress.set_description_str(f"{name}: training step")
    step = benchmark_training_step(name, options)
    progress.update()
    conversion = convert_model(make_native_model(name, 0, options), options)[1]
    return ModelComparison(name, options, parameters, conversion, seed_errors, step)


def _ratio(ours: float, native: float) -> float:
    if native == 0:
        return 1.0 if ours == 0 else float("inf")
    return ours / native


def _nan_last(value: float) -> tuple[bool, float]:
    return value != value, value
