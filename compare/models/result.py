"""A model on several seeds, and whether its gradients are native's.

The float32 error of ours is held against native's by the ratio of two medians over the seeds, each side's own. A
flip in ours and a flip in native are independent events. A seed in which one flips and the other does not has a ratio
of hundreds or of hundredths, so the median of the seeds' ratios sets one flip against another, or against none, and
tells who was lucky. Each side's median is what that side usually does. The median of ratios is shown beside it. Flips
hide a small fault, so rounding alone has a limit of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

import manualgrad as mg
from compare.models.measuring import Measured, measure
from compare.models.networks import Shape, in_order_of_depth, native_model, our_model
from compare.models.step import Step, training_step

FLOAT64_LIMIT = (
    1e-9  # of the whole gradient's norm, ours from native: rounding is 1e-14, a wrong formula 1e-3 or more
)
FLOAT32_LIMIT = 2.0  # times native's error against the oracle: another order of the same sums is as good
NEXT_TO_NOTHING = 1e-9  # of the whole norm: such a gradient is 0, as a bias's before a batch norm, and all rounding


@dataclass(frozen=True)
class Judgement:
    """A measure and its limit. ``ours``, ``native``: medians over the seeds, in float64 the largest of ours.

    ``by_seed``: the median of the seeds' ratios, which is not judged.
    """

    what: str
    ours: float
    native: float | None
    by_seed: float | None
    limit: float

    @property
    def ratio(self) -> float | None:
        """Of the two medians; None where there is one."""
        return None if self.native is None else _ratio(self.ours, self.native)

    @property
    def kept(self) -> bool:
        return (self.ours if self.ratio is None else self.ratio) <= self.limit  # NaN is not

    def __str__(self) -> str:
        if self.ratio is None:
            return f"{self.what}: ours is {self.ours:.2g} of the gradient's norm from native, at most {self.limit:g}"
        medians = f"medians {self.ours:.2g} of ours and {self.native:.2g} of native's"
        return f"{self.what}: {medians}, {self.ratio:.3g} times as much, at most {self.limit:g}"


@dataclass(frozen=True)
class ModelComparison:
    """``order``: the parameters in order of depth. ``conversion``: what from_torch did to each layer."""

    name: str
    shape: Shape
    order: Sequence[str]
    conversion: mg.interop.Report
    seeds: Sequence[Measured]
    step: Step

    @property
    def judgements(self) -> list[Judgement]:
        judged = [
            Judgement("float64", max((r.float64 for r in self.seeds), key=_nan_last), None, None, FLOAT64_LIMIT)
        ]
        for what, measure_ in (("float32, flips and all", "whole"), ("float32, rounding alone", "rounding")):
            ours, native = ([getattr(side, measure_) for side in self.runs(who)] for who in ("ours", "native"))
            by_seed = median(_ratio(a, b) for a, b in zip(ours, native, strict=True))
            judged.append(Judgement(what, median(ours), median(native), by_seed, FLOAT32_LIMIT))
        return judged

    @property
    def failures(self) -> list[str]:
        return [f"{self.name}: {judged}" for judged in self.judgements if not judged.kept]

    def runs(self, who: str) -> list[Any]:
        """The float32 runs of "ours" or of "native"."""
        return [getattr(result, who) for result in self.seeds]

    def share(self, parameter: str) -> float:
        """Of the whole gradient's norm, median."""
        return median(result.share[parameter] for result in self.seeds)

    def error(self, who: str, what: str, parameter: str) -> float | None:
        """Median of "errors" or "roundings" of a parameter; None where its gradient is next to nothing."""
        if self.share(parameter) < NEXT_TO_NOTHING:
            return None
        return median(getattr(run, what)[parameter] for run in self.runs(who))

    def flips(self, who: str) -> int:
        """All seeds and layers together."""
        return sum(sum(run.flips.values()) for run in self.runs(who))


def compare_models(names: Sequence[str], shape: Shape, seeds: Sequence[int], progress: Any) -> list[ModelComparison]:
    """Each model on each seed, then one training step of it; ``progress`` is a tqdm bar.

    Raises:
        CaseError: a model does not run on such images; told before any is measured.
    """
    with torch.random.fork_rng(devices=[]):
        orders = {name: in_order_of_depth(name, shape) for name in names}
        progress.total = len(names) * (len(seeds) + 1)
        return [_compare(name, shape, orders[name], seeds, progress) for name in names]


def _compare(name: str, shape: Shape, order: Sequence[str], seeds: Sequence[int], progress: Any) -> ModelComparison:
    measured = []
    for seed in seeds:
        progress.set_description_str(f"{name}: seed {seed}")
        measured.append(measure(name, seed, shape))
        progress.update()
    progress.set_description_str(f"{name}: a training step")
    step = training_step(name, shape)
    progress.update()
    conversion = our_model(native_model(name, 0), shape)[1]
    return ModelComparison(name, shape, order, conversion, measured, step)


def _ratio(ours: float, native: float) -> float:
    if native == 0:
        return 1.0 if ours == 0 else float("inf")
    return ours / native


def _nan_last(value: float) -> tuple[bool, float]:
    return value != value, value
