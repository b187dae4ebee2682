"""Runs in which only some inputs require a gradient: each input alone, each left out, and none."""

from __future__ import annotations

from collections.abc import Iterator

from compare.gradients.case_runner import CaseRunner, Judgement
from compare.gradients.diagnosis.findings import Finding
from compare.gradients.diagnosis.mismatch import NO_GRADIENT
from compare.gradients.diagnosis.wording import join_words
from compare.gradients.run_variant import OUTPUT, RunResult, gradient_name, run_variant
from compare.gradients.variants import Variant

KIND = "depends on which inputs require a gradient"
INVALID = "returned an invalid gradient"  # one that has not the shape of its input
PLACES = "backward returns one value for each argument of forward, None for those that require no gradient"


def find_dependence_on_requested_gradients(
    runner: CaseRunner, variant: Variant, right: set[str]
) -> Iterator[Finding]:
    """One finding for each quantity that is right if all inputs require a gradient, and wrong if only some do.

    Args:
        right: quantities that are right in ``variant`` if all inputs require a gradient.
    """
    inputs = runner.oracles(variant).inputs
    reported: set[str] = set()
    for names in _subsets(runner.input_names):
        native = runner.run_native(variant, names)
        if native.error is not None:
            continue
        situation = "no input requires a gradient"
        if names:
            situation = f"only {join_words(names)} {'require' if len(names) > 1 else 'requires'} a gradient"
        ours = run_variant(runner.case.ours, inputs, variant, runner.seed, requires_grad=names)
        if ours.error is not None:
            if OUTPUT not in reported:
                reported.add(OUTPUT)
                message = f"{type(ours.error).__name__}: {ours.error}"
                message += f"; {PLACES}" if INVALID in message else ""
                yield Finding(KIND, OUTPUT, f"an exception is raised where {situation}", message)
            continue
        for judgement in _judge(runner, variant, ours, native, names, right - reported):
            quantity = judgement.row.quantity
            reported.add(quantity)
            missing = judgement.row.message == NO_GRADIENT
            statement = f"is None where {situation}" if missing else f"is wrong where {situation}"
            yield Finding(KIND, quantity, statement, PLACES if missing else _evidence(judgement))


def _subsets(names: list[str]) -> list[tuple[str, ...]]:
    """Each input left out, each alone, and none."""
    left_out = [tuple(n for n in names if n != name) for name in names]
    alone = [(name,) for name in names]
    return [subset for subset in dict.fromkeys((*left_out, *alone, ())) if len(subset) < len(names)]


def _judge(
    runner: CaseRunner, variant: Variant, ours: RunResult, native: RunResult, names: tuple[str, ...], right: set[str]
) -> list[Judgement]:
    """Judgements of the wrong outputs and gradients of one run, where native gives them."""
    quantities = [name for name in native.values if name.startswith(OUTPUT)]
    quantities += [gradient_name(name) for name in names if native.values.get(gradient_name(name)) is not None]
    judgements = runner.judge(variant, ours, native, [name for name in quantities if name in right])
    return [judgement for judgement in judgements if judgement.mismatch is not None]


def _evidence(judgement: Judgement) -> str:
    row = judgement.row
    return row.message or f"at {list(row.index)}: got {row.ours_value:.6g}, expected {row.oracle_value:.6g}"
