"""The comparisons of whole models as a section: limits, seeds, a training step, error by depth, flips."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

from compare.models.pictures import error_by_depth
from compare.models.result import FLOAT32_LIMIT, FLOAT64_LIMIT, NEXT_TO_NOTHING, ModelComparison
from compare.sections import Cell, Picture, Section, Table

MIB = 2**20


def section(results: Sequence[ModelComparison]) -> Section:
    """Three judgements of each model, each of which could have failed; then what they rest on."""
    shape, seeds = results[0].shape, len(results[0].seeds)
    text = [
        f"{', '.join(result.name for result in results)} of torchvision, with our layers and as they are: random "
        f"weights, training mode, dropout from the same seed, {_count(shape.batch, 'image')} of "
        f"{shape.size}×{shape.size}, {_count(seeds, 'seed')}. Errors are those of the gradient of every parameter "
        f"together, against native's in float64, over its norm.",
        "In float32 a value near 0 may fall on the other side of a ReLU, or another place may win a pooling window: "
        "a flip, which moves a gradient more than all roundings do. Rounding alone is the error against a float64 "
        "run that is made to take the same signs and places.",
        f"In float64 ours may be {FLOAT64_LIMIT:g} of the norm from native. In float32 the median of our errors "
        f"over the seeds may be {FLOAT32_LIMIT:g} times the median of native's, with flips and of rounding alone. "
        "Flips of ours and of native are independent events, so the median of the seeds' ratios may set one flip "
        "against none; it is shown and not judged.",
        *map(_conversion, results),
    ]
    parts: list[Table | Picture] = [_judged(results), _steps(results), _seeds(results)]
    for result in results:
        parts += [_parameters(result), _picture(result), _flips(result)]
    failures = [failure for result in results for failure in result.failures]
    compared = sum(len(result.judgements) for result in results)
    return Section("models", "Model for model", text, parts, failures, [_data(r) for r in results], compared)


def _conversion(result: ModelComparison) -> str:
    now = Counter(entry.now.rpartition(".")[2] for entry in result.conversion.replaced)
    left = Counter(entry.kind.rpartition(".")[2] for entry in result.conversion.left)
    listed = [", ".join(f"{name} {n}" for name, n in counts.items()) or "none" for counts in (now, left)]
    return f"In {result.name} are ours: {listed[0]}. Left native: {listed[1]}."


def _judged(results: Sequence[ModelComparison]) -> Table:
    rows, failed = [], []
    for result in results:
        for judged in result.judgements:
            if not judged.kept:
                failed.append(len(rows))
            rows.append((result.name, judged.what, judged.ours, judged.native, judged.ratio, judged.by_seed,
                         judged.limit, judged.kept))  # fmt: skip
    columns = ("model", "error", "ours", "native", "ours / native", "median of ratios", "at most", "kept")
    note = "float64: the largest distance of ours from native. float32: medians over the seeds."
    return Table("Whole gradients", columns, rows, note, failed)


def _steps(results: Sequence[ModelComparison]) -> Table:
    rows = []
    for result in results:
        step = result.step
        held = [None if each.step is None else each.step / MIB for each in (step.ours_peak, step.native_peak)]
        rows.append((result.name, step.ours_seconds, step.native_seconds, step.ratio, *held))
    columns = ("model", "seconds, ours", "native", "median of ratios", "MiB, ours", "native")
    step = results[0].step
    note = f"Seconds are medians, in turn, on {_count(step.threads, 'thread')}. Memory is the most that a step adds: "
    return Table("One training step in float32", columns, rows, f"{note}{step.ours_peak.how}.")


def _seeds(results: Sequence[ModelComparison]) -> Table:
    rows = []
    for result in results:
        for each in result.seeds:
            pairs = [getattr(side, what) for what in ("whole", "rounding") for side in (each.ours, each.native)]
            flipped = [sum(side.flips.values()) for side in (each.ours, each.native)]
            rows.append((result.name, each.seed, *pairs, *flipped, each.float64))
    columns = ("model", "seed", "error, ours", "native", "rounding alone, ours", "native", "flips, ours", "native",
               "float64, ours from native")  # fmt: skip
    return Table("Seed by seed", columns, rows)


def _parameters(result: ModelComparison) -> Table:
    rows: list[Sequence[Cell]] = []
    for name in result.order:
        errors = [result.error(who, what, name) for what in ("errors", "roundings") for who in ("ours", "native")]
        rows.append((name, result.share(name), *errors))
    columns = ("parameter", "share of the norm", "error, ours", "native", "rounding alone, ours", "native")
    note = (
        "From input to output, as a forward pass comes to them; medians over the seeds. Errors are over the norm of "
        f"the parameter's own gradient. One below {NEXT_TO_NOTHING:g} of the whole norm is 0 but for rounding, and "
        "has no error."
    )
    return Table(f"{result.name}: error by parameter", columns, rows, note)


def _picture(result: ModelComparison) -> Picture:
    shown = [name for name in result.order if result.error("ours", "roundings", name)]
    caption = "Errors of each parameter's gradient, medians over the seeds. "
    if shown:
        first, last = (result.error("ours", "roundings", name) for name in (shown[0], shown[-1]))
        caption += f"Rounding alone, ours: {last:.1e} at {shown[-1]}, {first:.1e} at {shown[0]}."
    return Picture(
        f"{result.name}: error by depth", partial(error_by_depth, result), caption.strip(), caption.strip()
    )


def _flips(result: ModelComparison) -> Table:
    rows = []
    for name, places in result.seeds[0].decisions.items():
        counts = [sum(run.flips[name] for run in result.runs(who)) for who in ("ours", "native")]
        rows.append((name, places * len(result.seeds), *counts))
    rows.append(("all", sum(row[1] for row in rows), result.flips("ours"), result.flips("native")))
    note = "All seeds together. Layers alone are looked into, not functional calls in a forward."
    return Table(f"{result.name}: flips", ("layer", "signs and places", "flips, ours", "native"), rows, note)


def _data(result: ModelComparison) -> dict[str, Any]:
    judged = [dataclasses.asdict(j) | {"ratio": j.ratio, "kept": j.kept} for j in result.judgements]
    return {
        "model": result.name,
        **dataclasses.asdict(result.shape),
        "judged": judged,
        "order": list(result.order),
        "seeds": [dataclasses.asdict(each) for each in result.seeds],
        "step": dataclasses.asdict(result.step),
        "conversion": dataclasses.asdict(result.conversion),
    }


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"
