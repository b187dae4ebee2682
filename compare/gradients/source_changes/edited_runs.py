"""Runs of a function with an edit: of its backward alone, on one forward, where only backward is edited."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import CodeType

import torch
from torch import Tensor

from compare.gradients.case_runner import CaseRunner
from compare.gradients.diagnosis.mismatch import Incoming, Mismatch
from compare.gradients.run_variant import (
    RunResult,
    call,
    dense_copy,
    gradient_name,
    make_leaf,
    output_name,
    run_variant,
)
from compare.gradients.source_changes.editable_function import EditableFunction, exchanged
from compare.gradients.source_changes.kept_values import KeptValues
from compare.gradients.variants import gradient_to_layout, incoming_gradient

MODIFIED = "modified by an inplace operation"
RUN_CALLS = 120  # a run takes as long as so many calls of functions besides its own
CHECKED_AFTER = 50  # runs of backward: an edit may have changed something that the next ones need


class EditedRuns:
    """Runs of a case's function in the variant of one mismatch.

    Args:
        kept: what the function keeps from call to call. Each run begins with the values that there were first, and
            leaves nothing behind; backward alone begins with what its forward left.

    Attributes:
        backward_is_repeatable: True if backward gives the same again after one forward; otherwise each run is whole.
    """

    def __init__(self, runner: CaseRunner, first: Mismatch, kept: KeptValues) -> None:
        self.runner, self.first, self.kept = runner, first, kept
        self.backward_is_repeatable = False
        self._count = self._num_calls = 0

    @property
    def cost(self) -> int:
        """Work of a run, in calls of functions."""
        return RUN_CALLS + self._num_calls // (1 + self.backward_is_repeatable)

    def prepare(self, num_calls: int) -> None:
        """Run forward, and find out whether backward is repeatable.

        Args:
            num_calls: calls of functions in a whole run.
        """
        self._num_calls = num_calls
        try:
            self._run_forward()
        except Exception:  # whatever the function raises: then there is no forward to start from
            return
        self.backward_is_repeatable = all(self._is_as_before() for _ in range(2))

    @contextmanager
    def from_the_start(self) -> Iterator[None]:
        """Let functions begin with what they kept first; what they keep meanwhile is gone afterwards."""
        with self.kept.restored():
            self.kept.restore_first()
            yield

    def run(self) -> RunResult:
        """Run forward and backward, from the start."""
        with self.from_the_start():
            return self.run_once()

    def run_once(self) -> RunResult:
        """Run forward and backward, which leave behind what they keep."""
        runner, first = self.runner, self.first
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of edited code, which the user has not written
            return run_variant(runner.case.ours, first.inputs, first.variant, runner.seed, finds_changes=False)

    def run_edited(self, codes: Mapping[EditableFunction, CodeType]) -> RunResult:
        """Run with other code for some functions; backward alone where that calls them."""
        if not (self.backward_is_repeatable and all(function.called.in_backward for function in codes)):
            with exchanged(codes):
                return self.run()
        self._count += 1
        if self._count % CHECKED_AFTER == 0 and not self._is_as_before():
            self._run_forward()
        versions = [tensor._version for tensor in self._kept]
        with exchanged(codes):
            result = self._run_backward()
        if [tensor._version for tensor in self._kept] != versions or MODIFIED in str(result.error):
            self._run_forward()  # this edit, or the one before, wrote into a tensor that further runs need
            with exchanged(codes):
                result = self._run_backward()
            self._run_forward()
        return result

    def _is_as_before(self) -> bool:
        name = self.first.quantity
        return _is_same(self._run_backward().values.get(name), self.first.run.values.get(name))

    def _run_backward(self) -> RunResult:
        try:
            with self.kept.restored(), warnings.catch_warnings():
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

    def attached_gradients(
        self, codes: Mapping[EditableFunction, CodeType], incoming: Incoming | None = None
    ) -> dict[str, Tensor]:
        """Gradients of the inputs that backward gives with other code, with derivatives; none where it raises.

        Args:
            incoming: other incoming gradients.
        """
        received = self._incoming if incoming is None else [incoming(n, o).to(o.dtype) for n, o in self._numbered]
        versions = [tensor._version for tensor in self._kept]
        try:
            with self.kept.restored(), warnings.catch_warnings(), torch.enable_grad(), exchanged(codes):
                warnings.simplefilter("ignore")
                gradients = torch.autograd.grad(
                    self._outputs, list(self._leaves.values()), received, create_graph=True, allow_unused=True
                )
        except Exception:  # a change in place that autograd does not allow, say
            return {}
        finally:
            if [tensor._version for tensor in self._kept] != versions:
                self._run_forward()
        return {name: g for name, g in zip(self._leaves, gradients, strict=True) if g is not None}

    def _run_forward(self) -> None:
        variant, seed = self.first.variant, self.runner.seed
        self.kept.restore_first()
        inputs = {name: make_leaf(value, variant) for name, value in self.first.inputs.items()}
        outputs = call(self.runner.case.ours, inputs.values())
        self._values: dict[str, Tensor | None] = {output_name(n): dense_copy(o) for n, o in enumerate(outputs)}
        self._numbered = numbered = [(n, output) for n, output in enumerate(outputs) if output.requires_grad]
        self._incoming = [
            gradient_to_layout(incoming_gradient(o, variant, seed + n).to(o.dtype), variant.gradient_layout)
            for n, o in numbered
        ]
        self._leaves = {name: leaf for name, leaf in inputs.items() if leaf.requires_grad}
        self._outputs = [output for _, output in numbered]
        self._kept = [*inputs.values(), *outputs, *self._incoming]


def _is_same(value: Tensor | None, expected: Tensor | None) -> bool:
    if value is None or expected is None:
        return value is expected
    return torch.equal(value.nan_to_num(), expected.nan_to_num())
