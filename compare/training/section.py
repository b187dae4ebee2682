"""A comparison of trainings as a section of the report: every sentence and number is computed from its runs."""

from __future__ import annotations

import math
from dataclasses import asdict
from functools import partial
from statistics import mean
from typing import Any

from compare.sections import Cell, Picture, Section, Table
from compare.training import pictures as training_pictures
from compare.training import sentences
from compare.training.checks import GRADIENT_ALLOWANCE, STEPS_ALLOWANCE
from compare.training.result import HALF, NATIVE, NUDGED, OURS, TrainingComparison
from compare.training.sentences import last_accuracies, name_of, spread_of

LISTED = 40  # disputed images


def section(result: TrainingComparison) -> Section:
    """The section; where no seed came to its end, only what was checked until then."""
    parts: list[Table | Picture] = [_first_steps(result), _same_weights(result), _zeros(result)]
    if result.complete_seeds:
        parts = [
            _accuracy(result),
            _picture("Test accuracy", training_pictures.accuracies, result, sentences.of_accuracy(result)),
            _picture("Costs", training_pictures.costs, result, sentences.of_parting(result)),
            _parting(result),
            *parts[:2],
            _distances(result),
            _picture(
                "Kernels of the first convolution", training_pictures.kernels, result, sentences.of_distance(result)
            ),
            *_disputed(result),
            _derivatives(result),
            _picture("The derivative at 0", training_pictures.derivatives, result, sentences.of_derivatives(result)),
            parts[2],
        ]
    compared = len(result.first_steps) + len(result.same_weights)
    title = "Accuracy for accuracy"
    return Section("training", title, sentences.text(result), parts, result.failures, _data(result), compared)


# ------------------------------------------------------------------------------------------------- tables


def _accuracy(result: TrainingComparison) -> Table:
    rows = []
    for epoch in range(result.settings.epochs):
        ours, native, nudged = (
            [result.run(name, seed).accuracies[epoch] for seed in result.complete_seeds]
            for name in (OURS, NATIVE, NUDGED)
        )
        apart = [a - b for a, b in zip(ours, native, strict=True)]
        differences = f"{mean(apart):+.3f}", f"{max(map(abs, apart)):.3f}"
        rows.append((epoch + 1, spread_of(ours), spread_of(native), *differences, spread_of(nudged)))
    columns = ("epoch", "ours, %", "native, %", "ours − native", "largest of a seed", "native nudged, %")
    note = "Mean ± standard deviation over the seeds." if len(result.complete_seeds) > 1 else ""
    return Table("Test accuracy after each epoch", columns, rows, note)


def _parting(result: TrainingComparison) -> Table:
    rows = []
    for seed in result.complete_seeds:
        for other in (OURS, NUDGED):
            p = result.parting(seed, other)
            firsts = ("never" if step is None else step for step in (p.beyond_rounding, p.visible))
            rows.append((seed, f"{other} and native", p.largest, p.largest_at, *firsts))
    return Table(
        "Where the costs part",
        ("seed", "costs of", "largest difference", "at step", "first beyond rounding", "first beyond 1 %"),
        rows,
        f"Rounding: √n ε = {result.rounding:.2g} times the cost, or once if the cost is below 1; n is the number of "
        f"products in the network's longest sum, whose errors have mixed signs. Beyond 1 % a reader sees two curves.",
    )


def _first_steps(result: TrainingComparison) -> Table:
    rows = []
    for each in result.first_steps:
        judged = len(each.allowed)
        apart, allowed = each.differences[:judged], each.allowed
        itself = [abs(a - b) for a, b in zip(each.native, each.nudged, strict=True)][:judged]
        share = max(a / b for a, b in zip(apart, allowed, strict=True))
        rows.append((each.seed, judged, max(apart), max(itself), f"{100 * share:.2g} %", each.broken is None))
    return Table(
        "The first steps in float64",
        ("seed", "steps judged", "largest difference", "native to native nudged", "of what is allowed", "agrees"),
        rows,
        f"Allowed at a step: {STEPS_ALLOWANCE} times the farthest that native has come from native nudged until "
        f"then, or as many times √n ε of the cost. A wrong gradient shows here, since rounding has not grown yet.",
        failed=[n for n, row in enumerate(rows) if not row[-1]],
    )


def _same_weights(result: TrainingComparison) -> Table:
    rows = []
    for epoch, layer in dict.fromkeys((each.epoch, each.layer) for each in result.same_weights):
        each = [s for s in result.same_weights if (s.epoch, s.layer) == (epoch, layer)]
        share = max(s.ours / s.allowed for s in each)
        errors = max(s.ours for s in each), max(s.native for s in each)
        agrees = not any(s.failure for s in each)
        rows.append((_when(epoch), layer, *errors, f"{100 * share:.2g} %", agrees))
    count = result.same_weights[0].batches if result.same_weights else 0
    return Table(
        "Gradients at the same weights",
        ("when", "layer", "error of ours", "error of native", "of what is allowed", "agrees"),
        rows,
        f"‖g − g64‖ / ‖g64‖ of {name_of(result.settings.dtype)} against native in float64, at the weights of ours: "
        f"the median of {count} batches, the largest of the seeds. Allowed: {GRADIENT_ALLOWANCE} times native's "
        f"error, or as many times ε if that is more (√n ε in float64).",
        failed=[n for n, row in enumerate(rows) if not row[-1]],
    )


def _distances(result: TrainingComparison) -> Table:
    by_layer: dict[str, list] = {}
    for seed in result.complete_seeds:
        for each in result.distances(seed):
            by_layer.setdefault(each.layer, []).append(each)
    rows = []
    for layer, each in by_layer.items():
        parted, yardstick, ours, native = (
            mean(getattr(d, key) for d in each) for key in ("parted", "yardstick", "ours_moved", "native_moved")
        )
        rows.append((layer, parted, yardstick, parted / yardstick if yardstick else None, ours, native))
    return Table(
        "How far the trained parameters lie apart",
        ("layer", "ours to native", "native to native nudged", "ratio", "ours from start", "native from start"),
        rows,
        "Norms of differences over the norm of native's parameters, all in one convention; means over the seeds.",
    )


def _derivatives(result: TrainingComparison) -> Table:
    kinds = dict.fromkeys((run.subgradient, run.network) for run in result.runs if run.network != NUDGED)
    rows = []
    for subgradient, network in sorted(kinds, key=lambda kind: (kind[0], kind[1] != OURS)):
        values = last_accuracies(result, network, subgradient)
        first = "—"
        if network == OURS and subgradient != HALF:
            steps = [result.first_difference(seed, subgradient) for seed in result.complete_seeds]
            first = ", ".join("never" if step is None else str(step) for step in steps)
        rows.append((f"{subgradient:g}", network, *(f"{v:.2f}" for v in values), spread_of(values), first))
    seeds = [f"seed {seed}" for seed in result.complete_seeds]
    return Table(
        "The derivative of ReLU at 0: test accuracy after the last epoch, %",
        ("derivative", "network", *seeds, "mean", "first step that differs from 1/2"),
        rows,
        "Natively 0 is nn.ReLU, 1/2 is torch.maximum(z, 0); 1 is not to be had. A step differs if any bit of its "
        "cost does.",
    )


def _zeros(result: TrainingComparison) -> Table:
    rows = []
    for epoch, layer in dict.fromkeys((z.epoch, z.layer) for z in result.zeros):
        each = [z for z in result.zeros if (z.epoch, z.layer) == (epoch, layer)]
        rows.append(
            (_when(epoch), layer, *(sum(getattr(z, key) for z in each) for key in ("values", "zeros", "met")))
        )
    return Table(
        "Exact zeros before ReLU",
        ("when", "layer", "numbers", "exactly 0", "of these met by a gradient"),
        rows,
        f"Of ours in {name_of(result.settings.dtype)}, all seeds together.",
    )


def _disputed(result: TrainingComparison) -> list[Table | Picture]:
    counts, found = [], []
    for seed in result.complete_seeds:
        each = result.disputed(seed)
        found += each
        ours, native = sum(d.ours == d.label for d in each), sum(d.native == d.label for d in each)
        counts.append((seed, len(each), ours, native, len(each) - ours - native, len(result.disputed(seed, NUDGED))))
    columns = ("seed", "classified differently", "ours right", "native right", "neither", "native to native nudged")
    parts: list[Table | Picture] = [Table("Test images that the two classify differently", columns, counts)]
    if found:
        names = [name.split(" - ")[0] for name in result.dataset.classes]
        rows = [(d.seed, d.index, *(names[n] for n in (d.label, d.ours, d.native))) for d in found[:LISTED]]
        more = f"The first {LISTED} of {len(found)}." if len(found) > LISTED else ""
        parts.append(
            Table("Disputed images", ("seed", "test image", "true", "ours", "native"), rows, more, detail=True)
        )
        caption = "True class: ours / native. " + more
        parts.append(_picture("Disputed images", training_pictures.disputed, result, caption.strip()))
    return parts


# ------------------------------------------------------------------------------------------------- pieces


def _picture(title: str, draw: Any, result: TrainingComparison, caption: str) -> Picture:
    return Picture(title, partial(draw, result), alt=draw.__doc__.strip(), caption=caption)


def _when(epoch: int) -> Cell:
    return f"after epoch {epoch}" if epoch else "at the start"


def _data(result: TrainingComparison) -> dict[str, Any]:
    seeds = result.complete_seeds
    return _plain(
        {
            "settings": asdict(result.settings) | {"dtype": name_of(result.settings.dtype)},
            "dataset": result.dataset.name,
            "runs": [
                {
                    "network": run.network,
                    "subgradient": run.subgradient,
                    "seed": run.seed,
                    "accuracies": run.accuracies,
                    "costs": run.costs,
                }
                for run in result.runs
            ],
            "first_steps": [asdict(each) | {"allowed": each.allowed} for each in result.first_steps],
            "same_weights": [asdict(each) | {"allowed": each.allowed} for each in result.same_weights],
            "zeros": [asdict(each) for each in result.zeros],
            "partings": [
                asdict(result.parting(seed, other)) | {"network": other} for seed in seeds for other in (OURS, NUDGED)
            ],
            "distances": [asdict(each) for seed in seeds for each in result.distances(seed)],
            "disputed": [asdict(each) for seed in seeds for each in result.disputed(seed)],
        }
    )


def _plain(value: Any) -> Any:
    """Dicts, lists and numbers; what is not finite, which JSON cannot say, as a word."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
