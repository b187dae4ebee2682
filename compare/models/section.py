"""Report section of whole models: limits, training step, errors by seed and by parameter, flips."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

from compare.models.comparison import FLOAT32_LIMIT, FLOAT64_LIMIT, MIN_PROBABILITY, NEGLIGIBLE_NORM, ModelComparison
from compare.models.plots import error_by_depth
from compare.sections import Cell, Picture, Section, Table
from compare.speed.memory import JSON_KEYS as MEMORY_JSON_KEYS

MIB = 2**20
JSON_KEYS = MEMORY_JSON_KEYS | {  # keys in report.json of fields that have another name here
    "measure": "what",
    "median_of_ratios": "by_seed",
    "total": "whole",
    "total_rounding": "rounding",
    "by_parameter": "errors",
    "rounding_by_parameter": "roundings",
    "float64_error": "float64",
    "norm_fractions": "share",
    "num_decisions": "decisions",
}


def section(results: Sequence[ModelComparison]) -> Section:
    """Build the report section: three limit checks of each model, then the measurements behind them."""
    options, seeds = results[0].options, len(results[0].seeds)
    text = [
        f"{', '.join(result.name for result in results)} of torchvision, converted by from_torch and unconverted: "
        f"random weights, training mode, the same dropout seed, {_count(options.batch, 'image')} of "
        f"{options.size}×{options.size}, {_count(seeds, 'seed')}. An error is the norm of the difference of the "
        "whole gradient from native's in float64, over the norm of the latter.",
        "In float32 a value near 0 may get the other sign at a ReLU, or another element may win a pooling window: a "
        "flip. One flip moves a gradient more than all rounding errors do. The error from rounding only is measured "
        "against a float64 run that is forced to the same signs and pooling indices.",
        f"Limits: in float64 ours may differ from native by {FLOAT64_LIMIT:g} of the norm. In float32 the median "
        f"error of ours from rounding only may be {FLOAT32_LIMIT:g} times native's, and ours may flip "
        f"{FLOAT32_LIMIT:g} times as often as native: a number of flips exceeds the limit if it has a probability "
        f"below {MIN_PROBABILITY:.0%} at that rate. Errors with flips have no limit: in one seed only one side may "
        "have any.",
        *map(_conversion, results),
    ]
    parts: list[Table | Picture] = [_limit_checks(results), _steps(results), _seeds(results)]
    for result in results:
        parts += [_parameters(result), _plot(result), _flips(result)]
    failures = [failure for result in results for failure in result.failures]
    compared = sum(len(result.limit_checks) for result in results)
    return Section("models", "Whole models", text, parts, failures, [_data(r) for r in results], compared)


def _conversion(result: ModelComparison) -> str:
    converted = Counter(entry.now.rpartition(".")[2] for entry in result.conversion.replaced)
    unconverted = Counter(entry.kind.rpartition(".")[2] for entry in result.conversion.left)
    listed = [", ".join(f"{name} {n}" for name, n in counts.items()) or "none" for counts in (converted, unconverted)]
    return f"Layers of {result.name} that are ours: {listed[0]}. Left native: {listed[1]}."


def _limit_checks(results: Sequence[ModelComparison]) -> Table:
    rows, failed = [], []
    for result in results:
        for check in result.limit_checks:
            if not check.is_within_limit:
                failed.append(len(rows))
            rows.append((result.name, check.measure, check.ours, check.native, check.ratio, check.median_of_ratios,
                         check.limit, check.is_within_limit))  # fmt: skip
    columns = ("model", "error", "ours", "native", "ours / native", "median of ratios", "limit", "within limit")
    note = "float64: the largest difference of ours from native. float32: medians over the seeds. Flips: all seeds."
    return Table("Errors of the whole gradient, and flips", columns, rows, note, failed)


def _steps(results: Sequence[ModelComparison]) -> Table:
    rows = []
    for result in results:
        step = result.step
        peaks = [
            None if peak.step_bytes is None else peak.step_bytes / MIB for peak in (step.ours_peak, step.native_peak)
        ]
        rows.append((result.name, step.ours_seconds, step.native_seconds, step.ratio, *peaks))
    columns = ("model", "seconds, ours", "seconds, native", "median of ratios", "MiB, ours", "MiB, native")
    step = results[0].step
    note = (
        f"Seconds are medians of interleaved steps on {_count(step.threads, 'thread')}. MiB is the peak memory that "
        f"a step adds: {step.ours_peak.how}."
    )
    return Table("One training step in float32", columns, rows, note)


def _seeds(results: Sequence[ModelComparison]) -> Table:
    rows = []
    for result in results:
        for seed in result.seeds:
            sides = (seed.ours, seed.native)
            errors = [getattr(side, kind) for kind in ("total", "total_rounding") for side in sides]
            flips = [sum(side.flips.values()) for side in sides]
            rows.append((result.name, seed.seed, *errors, *flips, seed.float64_error))
    columns = ("model", "seed", "error, ours", "error, native", "rounding only, ours", "rounding only, native",
               "flips, ours", "flips, native", "float64 error")  # fmt: skip
    return Table("Errors by seed", columns, rows)


def _parameters(result: ModelComparison) -> Table:
    rows: list[Sequence[Cell]] = []
    for name in result.parameters:
        errors = [
            result.median_error(side, kind, name)
            for kind in ("by_parameter", "rounding_by_parameter")
            for side in ("ours", "native")
        ]
        rows.append((name, result.norm_fraction(name), *errors))
    columns = ("parameter", "fraction of the norm", "error, ours", "error, native", "rounding only, ours",
               "rounding only, native")  # fmt: skip
    note = (
        "Parameters in the order of the forward pass; medians over the seeds. Errors are relative to the norm of the "
        f"parameter's own gradient. A gradient below {NEGLIGIBLE_NORM:g} of the whole norm is 0 but for rounding, "
        "and no error is given."
    )
    return Table(f"{result.name}: error by parameter", columns, rows, note)


def _plot(result: ModelComparison) -> Picture:
    kind = "rounding_by_parameter"
    shown = [name for name in result.parameters if result.median_error("ours", kind, name)]
    caption = "Errors of each parameter's gradient, medians over the seeds. "
    if shown:
        first, last = (result.median_error("ours", kind, name) for name in (shown[0], shown[-1]))
        caption += f"Rounding only, ours: {last:.1e} at {shown[-1]}, {first:.1e} at {shown[0]}."
    caption = caption.strip()
    return Picture(f"{result.name}: error by depth", partial(error_by_depth, result), caption, caption)


def _flips(result: ModelComparison) -> Table:
    rows = []
    for name, num_decisions in result.seeds[0].num_decisions.items():
        counts = [sum(errors.flips[name] for errors in result.float32_errors(side)) for side in ("ours", "native")]
        rows.append((name, num_decisions * len(result.seeds), *counts))
    rows.append(("all", sum(row[1] for row in rows), result.num_flips("ours"), result.num_flips("native")))
    columns = ("layer", "signs and pooling indices", "flips, ours", "flips, native")
    note = "Totals over the seeds. Only layers are counted, not functional calls in a forward."
    return Table(f"{result.name}: flips", columns, rows, note)


def _data(result: ModelComparison) -> dict[str, Any]:
    checks = [
        _as_dict(check) | {"ratio": check.ratio, "kept": check.is_within_limit} for check in result.limit_checks
    ]
    return {
        "model": result.name,
        **_as_dict(result.options),
        "judged": checks,
        "order": list(result.parameters),
        "seeds": [_as_dict(errors) for errors in result.seeds],
        "step": _as_dict(result.step),
        "conversion": _as_dict(result.conversion),
    }


def _as_dict(value: Any) -> dict[str, Any]:
    """Convert a dataclass to a dict with the keys of report.json."""
    return dataclasses.asdict(value, dict_factory=lambda items: {JSON_KEYS.get(key, key): v for key, v in items})


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"
