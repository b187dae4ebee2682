"""The right gradient of another incoming gradient, or the right gradient transformed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from compare.gradients.diagnosis.findings import Finding
from compare.gradients.diagnosis.mismatch import Mismatch, equal_up_to_rounding
from compare.gradients.diagnosis.probe import MAX_EVALUATIONS, Probe
from compare.gradients.diagnosis.transformations import transformations
from compare.gradients.run_variant import OUTPUT

# Functions of the incoming gradient that are not linear.
NONLINEAR: dict[str, Callable[[Tensor], Tensor]] = {
    "the sign of the incoming gradient in its place": torch.sign,
    "the absolute value of the incoming gradient in its place": torch.abs,
    "the square of the incoming gradient in its place": torch.square,
    "the incoming gradient cut off at 0 from below (negative elements are lost)": lambda g: g.clamp(min=0),
    "the incoming gradient cut off at 0 from above (positive elements are lost)": lambda g: g.clamp(max=0),
    "the incoming gradient clamped to [-1, 1]": lambda g: g.clamp(-1, 1),
    "the incoming gradient divided by its norm": lambda g: g / g.norm(),
    "ones in place of the incoming gradient": torch.ones_like,
    "the incoming gradient rounded to whole numbers": torch.round,
}
MAX_MAPS = 400


def find_transformed(mismatch: Mismatch, probe: Probe) -> Iterator[Finding]:
    """The expected gradient transformed, or that for the incoming gradient transformed."""
    noun, oracle = mismatch.noun, mismatch.oracle
    for t in transformations(oracle.shape):
        value = t.apply(oracle)
        if mismatch.equals(value) and not equal_up_to_rounding(value, oracle):
            yield Finding(t.kind, mismatch.quantity, f"equals the expected {noun} {t.description}")
    if mismatch.is_output:
        return
    output = mismatch.run.values.get(OUTPUT)
    if output is None or not output.is_floating_point():
        return
    maps = list(transformations(output.shape))[:MAX_MAPS]
    if len(maps) > probe.affordable_runs(MAX_EVALUATIONS // 4):
        return  # the Jacobian tells more
    for t in maps:
        if mismatch.equals(_gradient(mismatch, probe, t.apply)):
            statement = f"equals the gradient computed with the incoming gradient {t.description}"
            yield Finding(t.kind, mismatch.quantity, statement)


def find_nonlinear(mismatch: Mismatch, probe: Probe) -> Iterator[Finding]:
    """The gradient for a function of the incoming gradient that is not linear."""
    for words, function in NONLINEAR.items():
        if mismatch.equals(_gradient(mismatch, probe, function)):
            yield Finding(
                "not linear in the incoming gradient", mismatch.quantity, f"equals the gradient with {words}"
            )


def _gradient(mismatch: Mismatch, probe: Probe, apply: Callable[[Tensor], Tensor]) -> Tensor | None:
    incoming = mismatch.incoming(probe.seed)

    def transformed(n: int, output: Tensor) -> Tensor:
        gradient = incoming(n, output)
        return apply(gradient).contiguous() if n == 0 else gradient

    values = probe.run_native(mismatch.inputs, transformed)
    return None if values is None else values.get(mismatch.quantity)
