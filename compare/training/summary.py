"""Summary of a comparison of trainings in sentences, all computed from its runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean, stdev

import torch

from compare.training.result import DEFAULT_SUBGRADIENT, NATIVE, NUDGED, OURS, TrainingComparison


def summary(result: TrainingComparison) -> list[str]:
    """Opening text of the section: what was trained, then what was measured."""
    s, dataset = result.settings, result.dataset
    text = [
        f"Both networks are trained on {len(dataset.train):,} images ({dataset.name}) by plain gradient descent: "
        f"{_counted(s.epochs, 'epoch')} of {_counted(s.steps_per_epoch, 'step')}, batch {s.batch_size}, {s.schedule} "
        f"schedule, learning rate {s.learning_rate:g}, {dtype_name(s.dtype)}, {s.device}, "
        f"{_counted(len(s.seeds), 'seed')}.",
        "For each seed, both start from the same weights and get the same batches in the same order. Native is also "
        "trained from these weights changed by one unit in the last place (native nudged): the difference between "
        "the two native runs shows the effect of rounding alone.",
    ]
    if not result.complete_seeds:
        return [*text, "No seed was completed; the failures give the reason."]
    sentences = (
        accuracy_sentence,
        loss_difference_sentence,
        distance_sentence,
        zeros_sentence,
        subgradient_sentence,
    )
    return [*text, *(sentence(result) for sentence in sentences)]


def accuracy_sentence(result: TrainingComparison) -> str:
    """Sentence on the test accuracy after the last epoch."""
    ours, native, nudged = (last_accuracies(result, name) for name in (OURS, NATIVE, NUDGED))
    explanation = " (mean ± standard deviation over the seeds)" if len(ours) > 1 else ""
    return (
        f"After the last epoch ours classifies {mean_and_stdev(ours)} % of {len(result.dataset.test):,} test images "
        f"correctly, native {mean_and_stdev(native)} %{explanation}; the means differ by "
        f"{abs(mean(ours) - mean(native)):.3f} points, those of native and native nudged by "
        f"{abs(mean(nudged) - mean(native)):.3f} points."
    )


def loss_difference_sentence(result: TrainingComparison) -> str:
    """Sentence on the first steps at which losses differ."""

    def first(other: str, attribute: str) -> str:
        steps = [getattr(result.loss_difference(seed, other), attribute) for seed in result.complete_seeds]
        known = [step for step in steps if step is not None]
        if not known:
            return "no step"
        return f"step {min(known)}" + (f" ({len(known)} of {len(steps)} seeds)" * (len(known) < len(steps)))

    ours, nudged = (
        f"by more than the rounding of one loss at {first(other, 'first_beyond_rounding')}, and by more than 1 % at "
        f"{first(other, 'first_visible')}"
        for other in (OURS, NUDGED)
    )
    return f"The losses of ours and native first differ {ours}. Those of native and native nudged do so {nudged}."


def distance_sentence(result: TrainingComparison) -> str:
    """Sentence on the distances of the trained parameters."""
    whole = [result.distances(seed)[-1] for seed in result.complete_seeds]
    ours_to_native, native_to_nudged, native_to_start = (
        mean(getattr(d, name) for d in whole) for name in ("ours_to_native", "native_to_nudged", "native_to_start")
    )
    ratio = f"; the ratio is {ours_to_native / native_to_nudged:.2g}" if native_to_nudged else ""
    return (
        f"Relative to the norm of native's parameters, the trained parameters of ours and native are "
        f"{ours_to_native:.2g} apart, those of native and native nudged {native_to_nudged:.2g}{ratio}. Training "
        f"moved native by {native_to_start:.2g}."
    )


def zeros_sentence(result: TrainingComparison) -> str:
    """Sentence on exact zeros before ReLU."""
    values, zeros, with_gradient = (
        sum(getattr(z, name) for z in result.zeros) for name in ("values", "zeros", "zeros_with_gradient")
    )
    verb = "was" if zeros == 1 else "were"
    return (
        f"Of {values:,} inputs of our ReLUs on some batches, {zeros:,} {verb} exactly 0, and {with_gradient:,} of "
        f"those had a gradient other than 0. The derivative at 0 matters only for these."
    )


def subgradient_sentence(result: TrainingComparison) -> str:
    """Sentence on the effect of the derivative of ReLU at 0."""
    choices = sorted({run.subgradient for run in result.runs if run.network == OURS})
    if len(choices) < 2:
        return "No derivative at 0 other than 1/2 was tried."
    by_choice = {s: last_accuracies(result, OURS, s) for s in choices}
    means = {s: round(mean(values), 9) for s, values in by_choice.items()}  # 9 digits: without the rounding of mean
    best, worst = max(means, key=means.get), min(means, key=means.get)
    range_of_means = means[best] - means[worst]
    first_steps = [
        result.first_changed_step(seed, s)
        for seed in result.complete_seeds
        for s in choices
        if s != DEFAULT_SUBGRADIENT
    ]
    known = [step for step in first_steps if step is not None]
    listed = ", ".join(f"{s:g}" for s in choices)
    deviation = None
    if len(result.complete_seeds) > 1:
        deviation = math.sqrt(mean(stdev(values) ** 2 for values in by_choice.values()))
    if not known:
        spread = "" if deviation is None else f" The standard deviation over the seeds is {deviation:.3f} points."
        unchanged = f"With derivative {listed} at 0, all losses of ours are equal to the bit"
        return f"{unchanged}: the choice has no effect.{spread}"
    extremes = f" (highest with {best:g}, lowest with {worst:g})" * (range_of_means > 0)
    sentence = (
        f"With derivative {listed} at 0, the mean accuracies of ours are within {range_of_means:.3f} "
        f"points{extremes}; a choice other than 1/2 first changed a bit of a loss at step {min(known)}, and did so "
        f"in {len(known)} of {len(first_steps)} runs"
    )
    if deviation is None:
        return f"{sentence}. One seed does not show how much of this is chance."
    comparison = "more than" if range_of_means > deviation else "not more than"
    return f"{sentence}. That is {comparison} the standard deviation over the seeds, {deviation:.3f} points."


def last_accuracies(
    result: TrainingComparison, network: str, subgradient: float = DEFAULT_SUBGRADIENT
) -> list[float]:
    """Test accuracies after the last epoch, one for each seed."""
    return [result.run(network, seed, subgradient).accuracies[-1] for seed in result.complete_seeds]


def mean_and_stdev(values: Sequence[float]) -> str:
    """Mean, and standard deviation if there are several values: "97.31 ± 0.12"."""
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + "s" * (number != 1)


def dtype_name(dtype: torch.dtype) -> str:
    """Name of a dtype without "torch."."""
    return str(dtype).removeprefix("torch.")
