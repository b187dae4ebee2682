"""Derivatives of forward's steps that backward leaves out: masks of ReLU and clamp, factors of the chain rule."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, cycle
from typing import Any

import torch
from torch import Tensor

from compare.gradients.diagnosis.mismatch import Mismatch
from compare.gradients.diagnosis.probe import Probe
from compare.gradients.numbers import as_real
from compare.gradients.run_variant import RunResult
from compare.gradients.source_changes.candidate import Candidate
from compare.gradients.source_changes.correction import Correction
from compare.gradients.source_changes.editable_function import exchanged
from compare.gradients.source_changes.edited_runs import EditedRuns
from compare.gradients.source_changes.forward_runs import Functions, run_forwards
from compare.gradients.source_changes.forward_values import step_derivatives
from compare.gradients.source_changes.places import Place, are_equal
from compare.gradients.source_changes.predicted_gradients import PredictedGradients
from compare.gradients.source_changes.recorded_values import INSTEAD, builtin, value_instead

MAX_RUNS, MAX_CALLS = 500, 150_000  # runs with a factor, and calls of functions in all of them
MAX_PARTS = 24  # factors that make only a part of the elements right
MIN_SHARE = 0.2  # of the wrong elements that such a factor makes right
SECOND_DRAW = 1
RELATIVE_ERROR = 1e-5


@dataclass(frozen=True)
class MissingFactor:
    """A derivative by which an expression should be multiplied; for a mask, the derivative that should make it.

    Attributes:
        words: "the derivative of `x.clamp(0, 1)` in line 7".
        sign: 1, or -1 for the negated derivative; a mask is true where the derivative is not 0, or where it is 0.
        is_reversed: the derivatives are those of a loop, from the last step on.
    """

    place: Place
    words: str
    sign: int
    is_reversed: bool

    @property
    def is_mask(self) -> bool:
        """True where the expression is a mask."""
        return self.place.present[0].dtype is torch.bool

    def in_order(self, known: Mapping[str, list[Tensor]]) -> list[Tensor]:
        """The derivatives for one value after the other."""
        return known[self.words][:: -1 if self.is_reversed else 1]

    def changed(self, value: Tensor, derivative: Tensor) -> Tensor:
        """The value that should be there instead."""
        if self.is_mask:
            return ((derivative != 0) == (self.sign > 0)).expand(value.shape)
        return value * (self.sign * derivative).to(value.dtype)

    @property
    def told(self) -> str:
        """The factor in words, after "should be"."""
        if self.is_mask:
            return f"true where {self.words} is {'not 0' if self.sign > 0 else '0'}"
        minus = "minus " if self.sign < 0 else ""
        return f"multiplied by {minus}{self.words}" + (", at each step" if len(self.place.present) > 1 else "")


class MissingDerivatives:
    """Search for such factors.

    Args:
        functions: those of the user that run.
        predicted: gradients with other values at the places.
        targets: what is wrong, in the variant of the runs.
    """

    def __init__(
        self,
        functions: Functions,
        places: Sequence[Place],
        predicted: PredictedGradients,
        runs: EditedRuns,
        targets: Sequence[Mismatch],
        probe: Probe,
    ) -> None:
        self._functions, self._places, self._runs, self._probe = functions, places, runs, probe
        self._predicted = predicted
        self._targets = [target for target in targets if _has_two_tensors(target)]

    def find(self) -> Correction | None:
        """The first factor, or the first two, with which a gradient is right in this draw and another one."""
        if not self._targets:
            return None
        known = step_derivatives(run_forwards(self._functions, self._runs.run))
        parts: dict[str, list[tuple[MissingFactor, Tensor]]] = {target.quantity: [] for target in self._targets}
        left = min(MAX_RUNS, MAX_CALLS // self._runs.cost)
        for factor in self._factors(known):
            if not self._may_be_right(factor, known):
                continue
            if left <= 0:
                break
            left -= 1
            result = self._run((factor,), known)
            for target in self._targets:
                right = None if result is None else _right_elements(result.values.get(target.quantity), target)
                if right is None or not _is_of_use(right, target):
                    continue
                own = parts[target.quantity]
                if right.all():
                    if self._is_confirmed((factor,), target.quantity):
                        return _correction((factor,), target.quantity)
                elif len(own) < MAX_PARTS:
                    own.append((factor, right))
        for quantity, own in parts.items():
            for (first, right), (second, also) in combinations(own, 2):
                if (right | also).all() and self._is_confirmed((first, second), quantity):
                    return _correction((first, second), quantity)
        return None

    def _factors(self, known: Mapping[str, list[Tensor]]) -> Iterator[MissingFactor]:
        for place in self._places:
            present = place.present[0]
            is_changed = present.is_floating_point() or present.dtype is torch.bool
            for words, derivatives in known.items() if not place.more and is_changed else ():
                if len(derivatives) in (1, len(place.present)) and _fits(derivatives[0], present):
                    for is_reversed in (False, True)[: len(derivatives)]:
                        for sign in (1, -1):
                            yield MissingFactor(place, words, sign, is_reversed)

    def _may_be_right(self, factor: MissingFactor, known: Mapping[str, list[Tensor]]) -> bool:
        """False if it is known without a run that no target is right with a factor, nor a part of one."""
        if factor.is_mask:
            return True
        derivatives = [factor.sign * each for each in factor.in_order(known)]
        predicted = self._predicted.with_factors(factor.place, derivatives)
        if predicted is None:
            return True
        for target in self._targets:
            numbers = predicted.get(target.quantity)
            if numbers is None or target.oracle is None or len(numbers) < target.oracle.numel():
                return True  # not all of its elements are known
            right = _right_elements(numbers.view(target.oracle.shape), target)
            if right is not None and _is_of_use(right, target):
                return True
        return False

    def _run(self, factors: Sequence[MissingFactor], known: Mapping[str, list[Tensor]]) -> RunResult | None:
        codes = _codes(factors)
        if codes is None:
            return None
        with builtin(INSTEAD, _multiplied(factors, known)):
            return self._runs.run_edited(codes)

    def _is_confirmed(self, factors: Sequence[MissingFactor], name: str) -> bool:
        """True if the gradient is right with the same factors in another draw."""
        probe = self._probe
        inputs, incoming = probe.draw(SECOND_DRAW), probe.incoming(SECOND_DRAW)
        with self._runs.from_the_start():
            right = None if inputs is None else probe.run_native(inputs, incoming)
        codes = _codes(factors)
        if inputs is None or right is None or codes is None:
            return False
        with self._runs.from_the_start():
            known = step_derivatives(run_forwards(self._functions, lambda: probe.run_ours(inputs, incoming)))
        if any(factor.words not in known for factor in factors):
            return False
        with self._runs.from_the_start(), builtin(INSTEAD, _multiplied(factors, known)), exchanged(codes):
            result = probe.run_ours(inputs, incoming)
        return are_equal(result.values.get(name), right.get(name))


def _has_two_tensors(target: Mismatch) -> bool:
    ours, oracle = target.ours, target.oracle
    return target.wrong is not None and ours is not None and oracle is not None and ours.shape == oracle.shape


def _wrong(target: Mismatch) -> Tensor:
    assert target.wrong is not None
    return target.wrong.cpu()


def _is_of_use(right: Tensor, target: Mismatch) -> bool:
    """True if all elements are right, or those that were and a part of the others."""
    wrong = _wrong(target)
    return bool((right | wrong).all() and (right & wrong).sum() >= MIN_SHARE * wrong.sum())


def _right_elements(got: Tensor | None, target: Mismatch) -> Tensor | None:
    if got is None or target.ours is None or target.oracle is None or as_real(got).shape != target.oracle.shape:
        return None
    before = (target.ours.double().cpu() - target.oracle.cpu()).abs()
    limit = (RELATIVE_ERROR * before).clamp(min=2 * target.tolerance)
    return (as_real(got).double().cpu() - target.oracle.cpu()).abs() <= limit


def _correction(factors: Sequence[MissingFactor], quantity: str) -> Correction:
    changes = tuple(factor.place.change(factor.told) for factor in factors)
    return Correction(changes, frozenset({quantity}), makes_all_right=False)


def _fits(derivative: Tensor, present: Tensor) -> bool:
    try:
        return torch.broadcast_shapes(derivative.shape, present.shape) == present.shape
    except RuntimeError:  # sizes that do not go together
        return False


def _codes(factors: Sequence[MissingFactor]) -> Any:
    if len(factors) == 1:
        return factors[0].place.code_with_changed_value
    edits = [
        (each.place.function, each.place.site.edit(value_instead(n, each.place.site.node), 1))
        for n, each in enumerate(factors)
    ]
    candidate = Candidate(tuple(edits))
    with candidate.made():
        return candidate.compiled()


def _multiplied(factors: Sequence[MissingFactor], known: Mapping[str, list[Tensor]]) -> Any:
    """A function for ``INSTEAD``: the value of the n-th factor's place, times the derivative of the step."""
    steps = [cycle(each.in_order(known)) for each in factors]
    return lambda n, value: factors[n].changed(value, next(steps[n]))
