"""Tables of a comparison of trainings; every number is computed from its runs."""

from __future__ import annotations

from statistics import mean

from compare.sections import Cell, Table
from compare.training.checks import GRADIENT_FACTOR, LOSS_FACTOR
from compare.training.result import DEFAULT_SUBGRADIENT, NATIVE, NUDGED, OURS, ParameterDistance, TrainingComparison
from compare.training.summary import dtype_name, last_accuracies, mean_and_stdev


def accuracy_table(result: TrainingComparison) -> Table:
    """Test accuracy after each epoch: ours, native, and native with nudged weights."""
    rows = []
    for epoch in range(result.settings.epochs):
        ours, native, nudged = (
            [result.run(name, seed).accuracies[epoch] for seed in result.complete_seeds]
            for name in (OURS, NATIVE, NUDGED)
        )
        differences = [a - b for a, b in zip(ours, native, strict=True)]
        summarized = f"{mean(differences):+.3f}", f"{max(map(abs, differences)):.3f}"
        rows.append((epoch + 1, mean_and_stdev(ours), mean_and_stdev(native), *summarized, mean_and_stdev(nudged)))
    columns = ("epoch", "ours, %", "native, %", "ours − native", "largest |ours − native|", "native nudged, %")
    note = "Mean ± standard deviation over the seeds." if len(result.complete_seeds) > 1 else ""
    return Table("Test accuracy after each epoch", columns, rows, note)


def loss_difference_table(result: TrainingComparison) -> Table:
    """Differences of the loss curves, of ours and native and of two natives."""
    rows = []
    for seed in result.complete_seeds:
        for other in (OURS, NUDGED):
            d = result.loss_difference(seed, other)
            first_steps = ("never" if step is None else step for step in (d.first_beyond_rounding, d.first_visible))
            rows.append((seed, f"{other} and native", d.largest, d.largest_step, *first_steps))
    return Table(
        "Differences of the losses",
        (
            "seed",
            "losses of",
            "largest difference",
            "at step",
            "first step beyond rounding",
            "first step beyond 1 %",
        ),
        rows,
        f"Rounding: √n ε = {result.rounding:.2g} times the loss, or times 1 if the loss is below 1; n is the number "
        f"of products in the network's longest sum, whose errors have mixed signs. Loss curves that differ by 1 % "
        f"are visibly apart.",
    )


def first_steps_table(result: TrainingComparison) -> Table:
    """Losses of the first steps in float64, which rounding has not driven apart yet."""
    rows = []
    for check in result.first_steps:
        num_judged = len(check.allowed)
        differences, allowed = check.differences[:num_judged], check.allowed
        native_differences = [abs(a - b) for a, b in zip(check.native, check.nudged, strict=True)][:num_judged]
        used = max(a / b for a, b in zip(differences, allowed, strict=True))
        largest = max(differences), max(native_differences)
        rows.append((check.seed, num_judged, *largest, f"{100 * used:.2g} %", check.first_failed_step is None))
    return Table(
        "Losses of the first steps in float64",
        (
            "seed",
            "steps judged",
            "largest difference, ours and native",
            "native and native nudged",
            "tolerance used",
            "agrees",
        ),
        rows,
        f"Tolerance at a step: {LOSS_FACTOR} times the largest difference of native and native nudged until then, "
        f"and at least {LOSS_FACTOR} times √n ε of the loss. A wrong gradient is found here, since rounding errors "
        f"have not grown yet.",
        failed=[n for n, row in enumerate(rows) if not row[-1]],
    )


def same_weights_table(result: TrainingComparison) -> Table:
    """Errors of gradients at the weights of ours, against native's in float64."""
    rows = []
    for epoch, layer in dict.fromkeys((check.epoch, check.layer) for check in result.same_weights):
        checks = [check for check in result.same_weights if (check.epoch, check.layer) == (epoch, layer)]
        used = max(check.ours / check.allowed for check in checks)
        errors = max(check.ours for check in checks), max(check.native for check in checks)
        agrees = not any(check.failure for check in checks)
        rows.append((_when(epoch), layer, *errors, f"{100 * used:.2g} %", agrees))
    num_batches = result.same_weights[0].batches if result.same_weights else 0
    return Table(
        "Gradients at the same weights",
        ("when", "layer", "error of ours", "error of native", "tolerance used", "agrees"),
        rows,
        f"Error: ‖g − g64‖ / ‖g64‖ of the {dtype_name(result.settings.dtype)} gradient g at the weights of ours, "
        f"where g64 is native's in float64; the median of {num_batches} batches, and the largest of the seeds. "
        f"Tolerance: {GRADIENT_FACTOR} times native's error, and at least {GRADIENT_FACTOR} times ε "
        "(√n ε in float64).",
        failed=[n for n, row in enumerate(rows) if not row[-1]],
    )


def distance_table(result: TrainingComparison) -> Table:
    """Distances of the trained parameters, layer by layer."""
    by_layer: dict[str, list[ParameterDistance]] = {}
    for seed in result.complete_seeds:
        for distance in result.distances(seed):
            by_layer.setdefault(distance.layer, []).append(distance)
    rows = []
    for layer, distances in by_layer.items():
        ours, nudged, ours_moved, native_moved = (
            mean(getattr(d, name) for d in distances)
            for name in ("ours_to_native", "native_to_nudged", "ours_to_start", "native_to_start")
        )
        rows.append((layer, ours, nudged, ours / nudged if nudged else None, ours_moved, native_moved))
    return Table(
        "Distances of the trained parameters",
        ("layer", "ours to native", "native to native nudged", "ratio", "ours to start", "native to start"),
        rows,
        "Norm of the difference over the norm of native's parameters, all in one convention; means over the seeds.",
    )


def subgradient_table(result: TrainingComparison) -> Table:
    """Test accuracies with other derivatives of ReLU at 0."""
    trained = dict.fromkeys((run.subgradient, run.network) for run in result.runs if run.network != NUDGED)
    rows = []
    for subgradient, network in sorted(trained, key=lambda pair: (pair[0], pair[1] != OURS)):
        values = last_accuracies(result, network, subgradient)
        first_changed = "—"
        if network == OURS and subgradient != DEFAULT_SUBGRADIENT:
            steps = [result.first_changed_step(seed, subgradient) for seed in result.complete_seeds]
            first_changed = ", ".join("never" if step is None else str(step) for step in steps)
        accuracies = (f"{value:.2f}" for value in values)
        rows.append((f"{subgradient:g}", network, *accuracies, mean_and_stdev(values), first_changed))
    seeds = [f"seed {seed}" for seed in result.complete_seeds]
    return Table(
        "Derivative of ReLU at 0: test accuracy after the last epoch, %",
        ("derivative", "network", *seeds, "mean", "first step that differs from 1/2"),
        rows,
        "In native, derivative 0 is nn.ReLU and 1/2 is torch.maximum(z, 0); 1 is not available. A step differs if "
        "any bit of its loss differs.",
    )


def zeros_table(result: TrainingComparison) -> Table:
    """Numbers of exact zeros before ReLU."""
    rows = []
    for epoch, layer in dict.fromkeys((z.epoch, z.layer) for z in result.zeros):
        counts = [z for z in result.zeros if (z.epoch, z.layer) == (epoch, layer)]
        totals = (sum(getattr(z, name) for z in counts) for name in ("values", "zeros", "zeros_with_gradient"))
        rows.append((_when(epoch), layer, *totals))
    return Table(
        "Exact zeros before ReLU",
        ("when", "layer", "values", "exactly 0", "exactly 0 with a gradient"),
        rows,
        f"Inputs of our ReLUs in {dtype_name(result.settings.dtype)}, all seeds together.",
    )


def _when(epoch: int) -> Cell:
    return f"after epoch {epoch}" if epoch else "at the start"
