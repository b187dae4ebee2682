"""Report section of a comparison of trainings: every sentence and number is computed from its runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from compare.sections import Cell, Picture, Section, Table
from compare.training import plots
from compare.training.result import NUDGED, OURS, Disagreement, TrainingComparison
from compare.training.summary import (
    accuracy_sentence,
    distance_sentence,
    dtype_name,
    loss_difference_sentence,
    subgradient_sentence,
    summary,
)
from compare.training.tables import (
    accuracy_table,
    distance_table,
    first_steps_table,
    loss_difference_table,
    same_weights_table,
    subgradient_table,
    zeros_table,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_LISTED = 40  # images classified differently
JSON_KEYS = {  # keys in report.json of fields that have another name here
    "largest_step": "largest_at",
    "first_beyond_rounding": "beyond_rounding",
    "first_visible": "visible",
    "ours_to_native": "parted",
    "native_to_nudged": "yardstick",
    "ours_to_start": "ours_moved",
    "native_to_start": "native_moved",
    "zeros_with_gradient": "met",
}


def section(result: TrainingComparison) -> Section:
    """Build the report section; if no seed was completed, it has only the checks made until then."""
    first_steps, same_weights, zeros = first_steps_table(result), same_weights_table(result), zeros_table(result)
    parts: list[Table | Picture] = [first_steps, same_weights, zeros]
    if result.complete_seeds:
        parts = [
            accuracy_table(result),
            _picture("Test accuracy", plots.accuracies, result, accuracy_sentence(result)),
            _picture("Losses", plots.losses, result, loss_difference_sentence(result)),
            loss_difference_table(result),
            first_steps,
            same_weights,
            distance_table(result),
            _picture("Kernels of the first convolution", plots.kernels, result, distance_sentence(result)),
            *_disagreements(result),
            subgradient_table(result),
            _picture("The derivative of ReLU at 0", plots.subgradients, result, subgradient_sentence(result)),
            zeros,
        ]
    compared = len(result.first_steps) + len(result.same_weights)
    return Section("training", "Training", summary(result), parts, result.failures, _data(result), compared)


def _disagreements(result: TrainingComparison) -> list[Table | Picture]:
    counts: list[tuple[Cell, ...]] = []
    listed: list[Disagreement] = []
    for seed in result.complete_seeds:
        images = result.disagreements(seed)
        listed += images
        ours, native = sum(d.ours == d.label for d in images), sum(d.native == d.label for d in images)
        neither, nudged = len(images) - ours - native, len(result.disagreements(seed, NUDGED))
        counts.append((seed, len(images), ours, native, neither, nudged))
    columns = (
        "seed",
        "ours and native differ",
        "ours correct",
        "native correct",
        "neither correct",
        "native and native nudged differ",
    )
    parts: list[Table | Picture] = [Table("Test images classified differently", columns, counts)]
    if listed:
        names = [name.split(" - ")[0] for name in result.dataset.classes]
        rows = [(d.seed, d.index, *(names[n] for n in (d.label, d.ours, d.native))) for d in listed[:MAX_LISTED]]
        note = f"The first {MAX_LISTED} of {len(listed)}." if len(listed) > MAX_LISTED else ""
        title = "Images classified differently"
        parts.append(Table(title, ("seed", "test image", "label", "ours", "native"), rows, note, detail=True))
        caption = f"Label: class of ours / class of native. {note}".strip()
        parts.append(_picture(title, plots.disagreements, result, caption))
    return parts


def _picture(
    title: str, draw: Callable[[TrainingComparison], Figure], result: TrainingComparison, caption: str
) -> Picture:
    return Picture(title, partial(draw, result), alt=draw.__doc__.strip(), caption=caption)


def _data(result: TrainingComparison) -> dict[str, Any]:
    seeds = result.complete_seeds
    return _plain(
        {
            "settings": asdict(result.settings) | {"dtype": dtype_name(result.settings.dtype)},
            "dataset": result.dataset.name,
            "runs": [
                {
                    "network": run.network,
                    "subgradient": run.subgradient,
                    "seed": run.seed,
                    "accuracies": run.accuracies,
                    "costs": run.losses,
                }
                for run in result.runs
            ],
            "first_steps": [asdict(check) | {"allowed": check.allowed} for check in result.first_steps],
            "same_weights": [asdict(check) | {"allowed": check.allowed} for check in result.same_weights],
            "zeros": [_as_dict(counts) for counts in result.zeros],
            "partings": [
                _as_dict(result.loss_difference(seed, other)) | {"network": other}
                for seed in seeds
                for other in (OURS, NUDGED)
            ],
            "distances": [_as_dict(distance) for seed in seeds for distance in result.distances(seed)],
            "disputed": [asdict(image) for seed in seeds for image in result.disagreements(seed)],
        }
    )


def _as_dict(value: Any) -> dict[str, Any]:
    """Convert a dataclass to a dict with the keys of report.json."""
    return {JSON_KEYS.get(name, name): field for name, field in asdict(value).items()}


def _plain(value: Any) -> Any:
    """Convert to dicts, lists and numbers; a number that is not finite, which JSON does not allow, becomes a word."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
