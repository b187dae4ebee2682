"""A gradient that equals native's with one elementary step of its backward changed.

The search comes after all others, so the simplest change of the whole operation is told first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compare.gradients.diagnosis.factors import name_factor
from compare.gradients.diagnosis.findings import Finding
from compare.gradients.diagnosis.mismatch import Mismatch, equal_up_to_rounding
from compare.gradients.diagnosis.probe import Probe
from compare.gradients.diagnosis.tape import Ref, Step, StepChange, StepKey, Tape, record_tape
from compare.gradients.diagnosis.tape_operands import changed_operand, combinations, fits
from compare.gradients.diagnosis.tape_operations import (
    FORMS,
    left_out,
    operation_words,
    other_arguments,
    other_operations,
    passing,
)
from compare.gradients.diagnosis.transformations import transformations
from compare.gradients.diagnosis.wording import format_number

NUM_TAPES = 3  # draws in which a change must explain the gradient
MAX_COST = 15_000  # steps, in all searches of one case: one to two seconds
MAX_CANDIDATES = 16  # tensors that are tried in the place of one


Value = Callable[[Tape, int], Tensor]  # what stands in the place of the tensor with a number
Replacement = tuple[str, str, Value]  # with kind and words
Replacements = Callable[[int], Iterator[Replacement]]


def find_tape_findings(mismatch: Mismatch, probe: Probe) -> Iterator[Finding]:
    """The changes of one step that explain the gradient in all draws."""
    search = TapeSearch(mismatch, probe)
    if search.is_traced:
        yield from search.findings()
        probe.tape_cost += search.tape.cost


def explains(change: Change, mismatch: Mismatch, probe: Probe) -> bool:
    """True if a change that explains another gradient explains this one too."""
    search = TapeSearch(mismatch, probe)
    return search.is_traced and search.explains(change)


@dataclass(frozen=True)
class Change:
    """One change of the tape, and what is said of it."""

    kind: str
    words: str
    key: StepKey | None = None
    step: StepChange | None = None
    operand: tuple[int, Value] | None = None  # position and value of an argument of the step
    instead: tuple[int, Value] | None = None  # number and value of a tensor of forward

    def gradient(self, tape: Tape) -> Tensor | None:
        """The gradient on a tape with this change; None if the change does not fit it."""
        step, instead = self.step, {}
        try:
            if self.instead is not None:
                number, value = self.instead
                instead = {number: value(tape, number)}
            if self.operand is not None:
                position, value = self.operand
                number = tape.backward[tape.positions[self.key]].arguments[position].number
                replaced = value(tape, number).clone()
                step = lambda s, flat: s.call([*flat[:position], replaced, *flat[position + 1 :]])  # noqa: E731
        except Exception:  # the change does not fit the tensor: then it is no explanation
            return None
        return tape.replay(self.key, step, instead)


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
                and tape.values[tape.result].shape == m.oracle.shape
                and equal_up_to_rounding(tape.values[tape.result].double(), m.oracle, 4 * m.tolerance)
                for m, tape in self.draws
            )
        )
        if self.is_traced:
            self.tape: Tape = self.draws[0][1]
            self.tests = [(*_sample(m), m, tape) for m, tape in self.draws]
            self.producers = {
                number: step
                for step in self.tape.forward
                for number in step.results
                if number is not None and Ref(number) not in step.arguments
            }
            self.inside = {number: s for s in self.tape.backward for number in s.results if number is not None}

    def findings(self) -> Iterator[Finding]:
        yield from self._explaining(self._operations())
        yield from self._weights()
        yield from self._explaining(self._other_arguments())
        yield from self._explaining(self._changed_operands())
        yield from self._explaining(self._results())
        yield from self._explaining(self._other_operands())

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
        for place, value, limit, mismatch, tape in self.tests:
            got = change.gradient(tape)
            if got is None or got.shape != mismatch.ours.shape:
                return False
            if not abs(float(got.flatten()[place]) - value) <= limit or not mismatch.equals(got.double().cpu()):
                return False
        return True

    def name(self, value: Any) -> str:
        """Words for a tensor of the tape."""
        number = value.number if isinstance(value, Ref) else value
        if number in self.tape.names:
            return self.tape.names[number]
        step = self.producers.get(number)
        while step is not None and step.name in FORMS and step.arguments and isinstance(step.arguments[0], Ref):
            source = step.arguments[0].number
            if source in self.tape.names:
                return self.tape.names[source]
            step = self.producers.get(source)
        if step is not None:
            return step.words
        step = self.inside.get(number)
        return (
            "a constant"
            if step is None
            else f"the result of {operation_words(step, lambda v: 'another')} in backward"
        )

    def _steps(self) -> Iterator[tuple[Step, str]]:
        for n in self.tape.needed:
            step = self.tape.backward[n]
            yield step, f"in the derivative of {step.words}, "

    def _operations(self) -> Iterator[Change]:
        """One operation of backward left out, or another one in its place."""
        for step, where in self._steps():
            words = operation_words(step, self.name)
            for position in left_out(step, self.tape):
                yield Change("step left out", f"{where}{words} is left out", step.key, passing(position))
            for kind, said, change in other_operations(step):
                yield Change(kind, where + said, step.key, change)

    def _other_arguments(self) -> Iterator[Change]:
        for step, where in self._steps():
            for said, change in other_arguments(step, _dims(step, self.tape)):
                yield Change("another operand", where + said, step.key, change)

    def _changed_operands(self) -> Iterator[Change]:
        return self._with_operands(self._changed)

    def _other_operands(self) -> Iterator[Change]:
        return self._with_operands(self._others)

    def _with_operands(self, replacements: Replacements) -> Iterator[Change]:
        """Something else in the place of an operand, in one use; then of a tensor of forward in all uses."""
        uses: Counter[int] = Counter()
        for step, where in self._steps():
            for position, argument in enumerate(step.arguments):
                if isinstance(argument, Ref):
                    uses[argument.number] += 1
                    for kind, words, value in replacements(argument.number):
                        yield Change(kind, where + words, step.key, operand=(position, value))
        for number, count in uses.items():
            if count > 1 and number not in self.inside:
                for kind, words, value in replacements(number):
                    yield Change(kind, f"in backward, {words}", instead=(number, value))

    def _changed(self, number: int) -> Iterator[Replacement]:
        """The operand changed by itself, or forward's operation that computes it."""
        tensor, name = self.tape.values[number], self.name(number)
        producer = self.producers.get(number)
        if producer is not None and producer.name not in FORMS:
            changes: list[tuple[str, str, StepChange]] = []
            for position in left_out(producer, self.tape):
                source = self.name(producer.arguments[position])
                words = f"{operation_words(producer, self.name)} is left out ({source} is used instead of {name})"
                changes.append(("step left out", words, passing(position)))
            changes += [(kind, f"{words}, in {name}", change) for kind, words, change in other_operations(producer)]
            changes += [
                ("another operand", f"{words}, in {name}", change)
                for words, change in other_arguments(producer, tensor.dim())
            ]
            for kind, words, change in changes:
                yield kind, words, lambda tape, k, c=change: _produced(tape, producer, c, k)
        for kind, words, function in changed_operand(tensor, name):
            yield kind, words, lambda tape, k, f=function: f(tape.values[k])

    def _others(self, number: int) -> Iterator[Replacement]:
        """Another tensor in the place of the operand, or as a factor of it."""
        tensor, name = self.tape.values[number], self.name(number)
        for other in self._candidates(number):
            for words, join in combinations(name, self.name(other)):
                if tensor.is_floating_point() or "instead" in words:
                    yield (
                        "another operand", words,
                        lambda tape, k, j=join, o=other: j(tape.values[k], tape.values[o]),
                    )  # fmt: skip

    def _candidates(self, number: int) -> list[int]:
        """Numbers of the tensors that may stand in the place of one: inputs, results of forward, then of backward."""
        tensor = self.tape.values[number]
        found = [
            k for k, other in enumerate(self.tape.values)
            if k != number and fits(tensor, other)
        ]  # fmt: skip
        return sorted(found, key=lambda k: k in self.inside)[:MAX_CANDIDATES]

    def _results(self) -> Iterator[Change]:
        """The result of a step transposed, flipped, shifted, averaged or summed."""
        for step, where in self._steps():
            numbers = [number for number in step.results if number is not None]
            if len(numbers) != 1 or step.name.endswith("_") or step.name in ("detach", "alias"):
                continue
            words = f"the result of {operation_words(step, self.name)}"
            for t in transformations(self.tape.values[numbers[0]].shape):
                yield Change(
                    t.kind, f"{where}{words} is {t.description}", step.key,
                    lambda s, flat, t=t: [t.apply(s.call(flat)[0]).contiguous()],
                )  # fmt: skip

    def _weights(self) -> Iterator[Finding]:
        """One step's result counts too much, too little, or not at all."""
        for step, where in self._steps():
            if self._is_spent():
                return
            if step.name.endswith("_") or len([r for r in step.results if r is not None]) != 1:
                continue
            change = Change("", "", step.key, lambda s, flat: [torch.zeros_like(s.call(flat)[0])])
            weight = None
            for mismatch, tape in self.draws:
                without = change.gradient(tape)
                part = None if without is None else mismatch.oracle - without
                square = 0.0 if part is None else float((part * part).sum())
                if part is None or not square:
                    break
                if weight is None:
                    weight = 1 + float(((mismatch.ours - mismatch.oracle) * part).sum()) / square
                    weight = round(weight, 9) if abs(weight - round(weight)) < 1e-8 else weight
                if not mismatch.equals(mismatch.oracle + (weight - 1) * part):
                    break
            else:
                yield self._weight_finding(weight, step, f"{where}the term of {operation_words(step, self.name)}")

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


def _dims(step: Step, tape: Tape) -> int:
    return max((tape.values[a.number].dim() for a in step.arguments if isinstance(a, Ref)), default=0)


def _produced(tape: Tape, producer: Step, change: StepChange, number: int) -> Tensor:
    """The tensor that a step of forward computes with a change."""
    results = change(producer, tape.flat(producer))
    value = results[producer.results.index(number)]
    if value.shape != tape.values[number].shape:
        raise ValueError("the shapes differ")
    return value
