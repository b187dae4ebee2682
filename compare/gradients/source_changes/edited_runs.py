"""Runs of a function with an edit: of its backward alone, on one forward, where only backward is edited."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from compare.gradients.case_runner import CaseRunner
from compare.gradients.diagnosis.mismatch import Mismatch
from compare.gradients.run_variant import (
    RunResult,
    call,
    dense_copy,
    gradient_name,
    make_leaf,
    output_name,
    run_variant,
)
from compare.gradients.variants import gradient_to_layout, incoming_gradient


class EditedRuns:
    """Runs of a case's function in the variant of one mismatch.

    Attributes:
        backward_is_repeatable: True if backward gives the same again after one forward; otherwise each run is whole.
    """

    def __init__(self, runner: CaseRunner, first: Mismatch) -> None:
        self.runner, self.first = runner, first
        self.backward_is_repeatable = False
        try:
            self._leaves, self._outputs, self._incoming, self._values = self._run_forward()
            repeated = [self.run_backward() for _ in range(2)]
        except Exception:  # whatever the function raises: then there is no forward to start from
            return
        expected = first.run.values.get(first.quantity)
        self.backward_is_repeatable = all(_is_same(r.values.get(first.quantity), expected) for r in repeated)

    def run(self) -> RunResult:
        """Run forward and backward."""
        runner, first = self.runner, self.first
        return run_variant(runner.case.ours, first.inputs, first.variant, runner.seed, finds_changes=False)

    def run_backward(self) -> RunResult:
        """Run backward alone."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                gradients = torch.autograd.grad(
                    self._outputs, list(self._leaves.values()), self._incoming, retain_graph=True, allow_unused=True
                )
        except Exception as error:  # most edits raise one
            return RunResult(self._values, error)
        named = zip(self._leaves, gradients, strict=True)
        return RunResult(
            self._values | {gradient_name(name): None if g is None else dense_copy(g) for name, g in named}
        )

    def _run_forward(self) -> tuple[dict[str, Tensor], list[Tensor], list[Tensor], dict[str, Any]]:
        variant = self.first.variant
        inputs = {name: make_leaf(value, variant) for name, value in self.first.inputs.items()}
        outputs = call(self.runner.case.ours, inputs.values())
        values: dict[str, Any] = {output_name(n): dense_copy(output) for n, output in enumerate(outputs)}
        numbered = [(n, output) for n, output in enumerate(outputs) if output.requires_grad]
        incoming = [
            gradient_to_layout(
                incoming_gradient(output, variant, self.runner.seed + n).to(output.dtype), variant.gradient_layout
            )
            for n, output in numbered
        ]
        leaves = {name: leaf for name, leaf in inputs.items() if leaf.requires_grad}
        return leaves, [output for _, output in numbered], incoming, values


def _is_same(value: Tensor | None, expected: Tensor | None) -> bool:
    if value is None or expected is None:
        return value is expected
    return torch.equal(value.nan_to_num(), expected.nan_to_num())
