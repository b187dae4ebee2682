"""A gradient that equals native's with one elementary step of its backward changed.

The search comes after all others, so a change of one of native's operations as a whole is told first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from compare.gradients.diagnosis.factors import name_factor
from compare.gradients.diagnosis.findings import Finding
from compare.gradients.diagnosis.mismatch import Mismatch, equal_up_to_rounding
from compare.gradients.diagnosis.probe import Probe
from compare.gradients.diagnosis.tape import Step, StepChange, Tape, record_tape
from compare.gradients.diagnosis.tape_changes import Change, Changes
from compare.gradients.diagnosis.tape_operations import FORMS, operation_words
from compare.gradients.diagnosis.tape_repeated import RepeatedChanges
from compare.gradients.diagnosis.tape_sensitivities import Sensitivities
from compare.gradients.diagnosis.wording import format_number

NUM_TAPES = 3  # draws in which a change must explain the gradient
MAX_COST = 25_000  # steps, in all searches of one case: about a second


def find_tape_findings(mismatch: Mismatch, probe: Probe) -> Iterator[Finding]:
    """The changes of one step that explain the gradient in all draws."""
    if not _is_proportional(mismatch, probe):
        return  # no change of a step makes a derivative that ignores the incoming gradient
    search = TapeSearch(mismatch, probe)
    if search.is_traced:
        try:
            yield from search.findings()
        finally:
            probe.tape_cost += search.tape.cost


def _is_proportional(mismatch: Mismatch, probe: Probe) -> bool:
    """True if twice the incoming gradient gives twice the gradient."""
    incoming = mismatch.incoming(probe.seed)
    doubled = probe.compare(mismatch, mismatch.inputs, lambda n, output: 2 * incoming(n, output))
    return doubled is not None and equal_up_to_rounding(doubled.ours, 2 * mismatch.ours, 16 * mismatch.tolerance)


def explains(change: Change, mismatch: Mismatch, probe: Probe) -> bool:
    """True if a change that explains another gradient explains this one too."""
    search = TapeSearch(mismatch, probe)
    return search.is_traced and search.explains(change)


class TapeSearch:
    """Tapes of several draws, and the changes that are tried on them."""

    def __init__(self, mismatch: Mismatch, probe: Probe) -> None:
        self.draws: list[tuple[Mismatch, Tape]] = []
        for n in range(NUM_TAPES):
            m = mismatch if n == 0 else probe.mismatch(mismatch, n)
            tape = None if m is None else record_tape(m, probe)
            if m is not None and tape is not None:
                self.draws.append((m, tape))
        self.mismatch, self.probe = mismatch, probe
        tape = self.draws[0][1] if self.draws else None
        self.is_traced = (
            tape is not None
            and self.draws[0][0] is mismatch
            and all(tape.has_same_steps_as(other) for _, other in self.draws[1:])
            and all(
                tape.result >= 0
                and tape.gradient.shape == m.oracle.shape
                and equal_up_to_rounding(tape.gradient.double(), m.oracle, 4 * m.tolerance)
                for m, tape in self.draws
            )
        )
        if self.is_traced:
            self.tape: Tape = self.draws[0][1]
            self.spread = self._spread()
            self.repeated = RepeatedChanges()
            self.sensitivities = Sensitivities(self.tape, _sample(mismatch)[0])
            self.tests = [(*_sample(m), m, tape) for m, tape in [*self.draws, *self.spread]]
            self.changes = Changes(self.tape)
            # One number from the same inputs in each draw is always a multiple of another one.
            others = [
                m
                for m, _ in self.draws[1:]
                if any(not torch.equal(m.inputs[name], value) for name, value in mismatch.inputs.items())
            ]
            self.is_determined = mismatch.oracle.numel() > 1 or bool(others)

    def _spread(self) -> list[tuple[Mismatch, Tape]]:
        """The draw of larger inputs, if native has a value and the same steps there."""
        spread = self.probe.spread(self.mismatch)
        tape = None if spread is None else record_tape(spread, self.probe)
        if tape is None or not self.tape.has_same_steps_as(tape):
            return []
        return [(spread, tape)] if spread.tolerance >= abs(tape.gradient - spread.oracle).max() else []

    def findings(self) -> Iterator[Finding]:
        """The changes that explain the gradient; those that are made most often come first."""
        yield from self._explaining(self.changes.operations())
        yield from self._weights()
        yield from self._explaining(self.changes.other_arguments())
        yield from self._explaining(self.changes.other_steps())
        yield from self._explaining(self.changes.changed_operands())
        yield from self._explaining(self.changes.changed_inputs())
        yield from self._explaining(self.changes.recomputed_values())
        yield from self._explaining(self.changes.skipped_derivatives())
        yield from self._explaining(self.changes.results())
        yield from self._explaining(self.changes.equal_slices())
        yield from self._explaining(self.changes.other_operands())
        yield from self._explaining(self.changes.operands_of_changed_steps())
        place, value, limit, _, tape = self.tests[0]
        target = value - float(tape.gradient.flatten()[place])
        yield from self._explaining(self.repeated.combinations(target, 2 * limit))

    def _explaining(self, changes: Iterator[Change]) -> Iterator[Finding]:
        for change in changes:
            if self._is_spent():
                return
            if self.explains(change):
                self.probe.explanations[change.kind, change.words] = change
                yield Finding(change.kind, self.mismatch.quantity, change.words)

    def _is_spent(self) -> bool:
        """True after ``MAX_COST``; then nothing more is tried. A limit in seconds would make results differ."""
        return self.probe.tape_cost + self.tape.cost > MAX_COST

    def explains(self, change: Change) -> bool:
        """True if the gradient with this change equals ours in every draw."""
        if not self._may_explain(change):
            return False
        for place, value, limit, mismatch, tape in self.tests:
            got = change.gradient(tape)
            if got is None or got.shape != mismatch.ours.shape:
                return False
            if not abs(float(got.flatten()[place]) - value) <= limit or not mismatch.equals(got.double().cpu()):
                return False
        return True

    def _may_explain(self, change: Change) -> bool:
        """False if the change is of one step, and makes another element than ours of the one that is most wrong."""
        place, value, limit, _, tape = self.tests[0]
        if change.also:
            return True
        try:
            step = change.changed_step(tape)
            element = None if step is None or change.key is None else self.sensitivities.element(change.key, step)
        except Exception:  # the change does not fit the arguments: then it is no explanation
            return False
        before = float(tape.gradient.flatten()[place])
        self.repeated.add(change, math.nan if element is None else element - before)
        return element is None or abs(element - value) <= 2 * limit

    def _weights(self) -> Iterator[Finding]:
        """One step's result counts too much, too little, or not at all."""
        for step, where in self.changes.steps():
            if self._is_spent():
                return
            numbers = [number for number in step.results if number is not None]
            if not self.is_determined or step.name.endswith("_") or len(numbers) != 1 or step.results[0] is None:
                continue
            if self.tape.is_in_place and step.name in FORMS:  # without it, an in-place operation has no effect
                continue
            if self.tape.values[numbers[0]].dtype is torch.bool:  # a mask is left out or inverted, and has no weight
                continue
            change = Change("", "", step.key, lambda s, flat: [torch.zeros_like(s.call(flat)[0])])
            weight = None
            for mismatch, tape in [*self.draws, *self.spread]:
                without = change.gradient(tape)
                part = None if without is None else mismatch.oracle - without
                square = 0.0 if part is None else float((part * part).sum())
                if part is None or not 0 < square < math.inf:  # nor NaN
                    break
                if weight is None:
                    weight = 1 + float(((mismatch.ours - mismatch.oracle) * part).sum()) / square
                    weight = round(weight, 9) if abs(weight - round(weight)) < 1e-8 else weight
                if not mismatch.equals(mismatch.oracle + (weight - 1) * part):
                    break
            else:
                yield self._weight_finding(
                    weight, step, f"{where}the term of {operation_words(step, self.changes.name)}"
                )

    def _weight_finding(self, weight: float, step: Step, term: str) -> Finding:
        kind, said = "factor of one term", f"is {format_number(weight)} times as large as it should be"
        name = name_factor(weight, self.mismatch)
        said += f" ({name})" if name else ""
        if weight == 0:
            kind, said = "missing term", "is missing"
        elif weight == -1:
            said = "has the wrong sign"
        scaled: StepChange = lambda s, flat: [weight * s.call(flat)[0]]  # noqa: E731
        self.probe.explanations[kind, f"{term} {said}"] = Change(kind, f"{term} {said}", step.key, scaled)
        return Finding(kind, self.mismatch.quantity, f"{term} {said}")


def _sample(mismatch: Mismatch) -> tuple[int, float, float]:
    """The element that is most wrong, its value and the error allowed: most changes are refuted by it alone."""
    place = int((mismatch.ours - mismatch.oracle).abs().nan_to_num(0.0).argmax())
    limit = max(4 * mismatch.tolerance, 1e-6 * float(mismatch.ours.abs().nan_to_num(0.0).max()))
    return place, float(mismatch.ours.flatten()[place]), limit
