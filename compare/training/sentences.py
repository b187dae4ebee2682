"""What a comparison of trainings says in words: every sentence is computed from its runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean, stdev

from compare.training.result import HALF, NATIVE, NUDGED, OURS, TrainingComparison


def text(result: TrainingComparison) -> list[str]:
    """What opens the section: what was done, then what came of it."""
    s, dataset = result.settings, result.dataset
    text = [
        f"Both networks are trained on {len(dataset.train):,} images ({dataset.name}) by plain gradient descent: "
        f"{_counted(s.epochs, 'epoch')} of {_counted(s.steps_per_epoch, 'step')}, batch {s.batch_size}, {s.schedule} "
        f"schedule, learning rate {s.learning_rate:g}, {name_of(s.dtype)}, {s.device}, "
        f"{_counted(len(s.seeds), 'seed')}.",
        "For each seed they start from the same weights and see the same batches in the same order. Native is also "
        "trained from these weights changed by one unit in the last place (nudged): how far the two native runs part "
        "is what rounding alone does.",
    ]
    if not result.complete_seeds:
        return [*text, "No seed came to its end; the failures say why."]
    sentences = (of_accuracy, of_parting, of_distance, of_zeros, of_derivatives)
    return [*text, *(sentence(result) for sentence in sentences)]


def of_accuracy(result: TrainingComparison) -> str:
    ours, native, nudged = (last_accuracies(result, name) for name in (OURS, NATIVE, NUDGED))
    return (
        f"After the last epoch ours is right on {spread_of(ours)} % of {len(result.dataset.test):,} test images, "
        f"native on {spread_of(native)} %{_sd(ours)}; the means differ by {abs(mean(ours) - mean(native)):.3f} "
        f"points, those of native and native nudged by {abs(mean(nudged) - mean(native)):.3f}."
    )


def of_parting(result: TrainingComparison) -> str:
    def first(other: str, which: str) -> str:
        found = [getattr(result.parting(seed, other), which) for seed in result.complete_seeds]
        known = [step for step in found if step is not None]
        if not known:
            return "never"
        return f"from step {min(known)}" + (f" ({len(known)} of {len(found)} seeds)" * (len(known) < len(found)))

    ours, nudged = (
        f"{first(other, 'beyond_rounding')} by more than one cost's rounding, "
        f"{first(other, 'visible')} by more than 1 %"
        for other in (OURS, NUDGED)
    )
    return f"The costs of ours and native part {ours}; those of native and native nudged {nudged}."


def of_distance(result: TrainingComparison) -> str:
    whole = [result.distances(seed)[-1] for seed in result.complete_seeds]
    parted, yardstick, moved = (mean(getattr(d, k) for d in whole) for k in ("parted", "yardstick", "native_moved"))
    ratio = f", {parted / yardstick:.2g} times as far" if yardstick else ""
    return (
        f"Relative to native's norm, ours ends {parted:.2g} from native, and native nudged {yardstick:.2g} from it"
        f"{ratio}; native moved {moved:.2g} from the start."
    )


def of_zeros(result: TrainingComparison) -> str:
    values, zeros, met = (sum(getattr(z, key) for z in result.zeros) for key in ("values", "zeros", "met"))
    verb = "was" if zeros == 1 else "were"
    return (
        f"Of {values:,} numbers that the ReLUs of ours were given on some batches, {zeros:,} {verb} exactly 0, and "
        f"{met:,} of those met a gradient other than 0; nothing else makes the derivative at 0 matter."
    )


def of_derivatives(result: TrainingComparison) -> str:
    choices = _choices(result)
    if len(choices) < 2:
        return "No other derivative at 0 than 1/2 was tried."
    by_choice = {s: last_accuracies(result, OURS, s) for s in choices}
    means = {s: round(mean(values), 9) for s, values in by_choice.items()}  # 9: not the last bits of the mean
    best, worst = max(means, key=means.get), min(means, key=means.get)
    apart = means[best] - means[worst]
    firsts = [result.first_difference(seed, s) for seed in result.complete_seeds for s in choices if s != HALF]
    known = [step for step in firsts if step is not None]
    tried = ", ".join(f"{s:g}" for s in choices)
    spread = None
    if len(result.complete_seeds) > 1:
        spread = math.sqrt(mean(stdev(values) ** 2 for values in by_choice.values()))
    if not known:
        beside = "" if spread is None else f", beside a standard deviation of {spread:.3f} points from seed to seed"
        same = f"With derivative {tried} at 0 every cost of ours is the same in every bit"
        return f"{same}: the choice changed nothing{beside}."
    said = (
        f"With derivative {tried} at 0 the mean accuracies of ours lie within "
        f"{apart:.3f} points{f' (most with {best:g}, least with {worst:g})' * (apart > 0)}; another choice than 1/2 "
        f"changed a cost in any bit at step {min(known)} at the earliest, and in {len(known)} of {len(firsts)} runs"
    )
    if spread is None:
        return f"{said}. One seed does not tell how much of this is chance."
    verdict = "more than" if apart > spread else "not more than"
    return f"{said}. That is {verdict} the spread from seed to seed, a standard deviation of {spread:.3f} points."


def _choices(result: TrainingComparison) -> list[float]:
    return sorted({run.subgradient for run in result.runs if run.network == OURS})


def last_accuracies(result: TrainingComparison, network: str, subgradient: float = HALF) -> list[float]:
    """The last accuracies, one for each seed."""
    return [result.run(network, seed, subgradient).accuracies[-1] for seed in result.complete_seeds]


def spread_of(values: Sequence[float]) -> str:
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def _sd(values: Sequence[float]) -> str:
    return " (mean ± standard deviation over the seeds)" if len(values) > 1 else ""


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}" + "s" * (number != 1)


def name_of(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")
