"""Changes of one step of a tape that a hand-written backward may have, and what is said of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compare.gradients.diagnosis.substitutes import other_indices
from compare.gradients.diagnosis.tape import Ref, Step, StepChange, StepKey, Tape
from compare.gradients.diagnosis.tape_forward import (
    Inputs,
    Places,
    ancestors,
    changed_inputs,
    forward_changes,
    operand_with,
    recomputed,
    with_dependents,
)
from compare.gradients.diagnosis.tape_operands import changed_operand, combinations, equal_slices, fits
from compare.gradients.diagnosis.tape_operations import (
    FORMS,
    left_out,
    operation_words,
    other_arguments,
    other_operations,
    passing,
    removes_diagonal,
)
from compare.gradients.diagnosis.transformations import transformations

MAX_CANDIDATES = 16  # tensors that are tried in the place of one
MIN_OF_A_LOOP = 3  # steps

Value = Callable[[Tape, int], Tensor]  # what stands in the place of the tensor with a number
Replacement = tuple[str, str, Value]  # with kind and words
Replacements = Callable[[int], Iterator[Replacement]]


@dataclass(frozen=True)
class Change:
    """One change of the tape, and what is said of it."""

    kind: str
    words: str
    key: StepKey | None = None
    step: StepChange | None = None
    operand: tuple[int, Value] | None = None  # position and value of an argument of the step
    instead: tuple[int, Value] | None = None  # number and value of a tensor of forward
    forward: tuple[Places, StepChange] | None = None  # places and change of equal steps of forward
    inputs: Inputs | None = None  # what all of backward has in the place of inputs
    values: Inputs | None = None  # and in the place of results of forward
    also: tuple[Change, ...] = ()  # of further steps

    def gradient(self, tape: Tape) -> Tensor | None:
        """The gradient on a tape with this change; None if the change does not fit it."""
        instead = {}
        try:
            steps = {each.key: each.changed_step(tape) for each in (self, *self.also) if each.key is not None}
            if self.instead is not None:
                number, value = self.instead
                instead = {number: value(tape, number)}
            if self.forward is not None:
                instead = recomputed(tape, *self.forward)
            if self.inputs is not None:
                instead = recomputed(tape, given=self.inputs(tape))
            if self.values is not None:
                instead = with_dependents(tape, self.values(tape))
        except Exception:  # the change does not fit the tensor: then it is no explanation
            return None
        return tape.replay({key: step for key, step in steps.items() if step is not None}, instead)

    def changed_step(self, tape: Tape) -> StepChange | None:
        """The change of the step at ``key``; None if that is not what changes."""
        if self.operand is None:
            return self.step
        position, value = self.operand
        number = tape.backward[tape.positions[self.key]].arguments[position].number
        replaced = value(tape, number).clone()
        return lambda step, flat: step.call([*flat[:position], replaced, *flat[position + 1 :]])


class Changes:
    """Every change that is tried on a tape."""

    def __init__(self, tape: Tape) -> None:
        self.tape = tape
        self.producers = {
            number: step
            for step in tape.forward
            for number in step.results
            if number is not None and Ref(number) not in step.arguments
        }
        self.inside = {
            number: step
            for step in tape.backward
            for number in step.results
            if number is not None and number not in step.numbers
        }
        self.uses = Counter(number for step, _ in self.steps() for number in step.numbers)

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

    def steps(self) -> Iterator[tuple[Step, str]]:
        """The steps that the gradient depends on, and words that say where each is."""
        for n in self.tape.needed:
            step = self.tape.backward[n]
            if step.results == step.numbers and not step.name.endswith("_"):  # a conversion to the same dtype
                continue
            yield step, f"in the derivative of {step.words}, "

    def operations(self) -> Iterator[Change]:
        """One operation of backward left out, or another one in its place."""
        for step, where in self.steps():
            words = operation_words(step, self.name)
            words = "the removal of the diagonal (tril, triu)" if removes_diagonal(step, self.tape) else words
            for position in left_out(step, self.tape):
                kind, said = "step left out", f"{where}{words} is left out"
                if step.name.startswith("add") and all(number in self.inside for number in step.numbers):
                    kind = "missing term"
                    said = f"one of two terms is missing that are added after the derivative of {step.words}: "
                    said += "where a tensor is used twice, the gradient of one use alone is taken"
                yield Change(kind, said, step.key, passing(position))
            for kind, said, change in other_operations(step):
                yield Change(kind, where + said, step.key, change)

    def skipped_derivatives(self) -> Iterator[Change]:
        """The gradient of a result passed unchanged to a tensor from which several operations compute that result."""
        for number, producer in self.inside.items():
            tensor = self.tape.values[number]
            if any(producer.words == step.words for step, _ in self.steps() if number in step.numbers):
                continue  # a tensor within a derivative is not all that it passes on
            for source, between in self._sources(producer).items():
                other = self.tape.values[source]
                words = list(dict.fromkeys(step.words for step in between if step.name not in FORMS))[::-1]
                if other.shape == tensor.shape and other.dtype == tensor.dtype and len(words) > 1:
                    said = f"the derivatives of {', '.join(words[:-1])} and {words[-1]} are left out"
                    said += ": the gradient passes through them unchanged"
                    yield Change("step left out", said, instead=(number, lambda tape, k, n=source: tape.values[n]))

    def changed_inputs(self) -> Iterator[Change]:
        """Inputs changed for all of backward, as by saving other tensors than forward uses."""
        for kind, words, inputs in changed_inputs(self.tape):
            yield Change(kind, f"in all of backward, {words}", inputs=inputs)

    def other_steps(self) -> Iterator[Change]:
        """The results of one operation in a loop, each in the place of that of another step."""
        loops: dict[str, list[int]] = {}
        for step in self.tape.forward:
            if step.name not in FORMS:
                loops.setdefault(f"{step.words} {step.name}", []).extend(n for n in step.results if n is not None)
        for numbers in loops.values():
            shapes = {self.tape.values[number].shape for number in numbers}
            if len(numbers) < MIN_OF_A_LOOP or len(shapes) > 1 or self.uses.keys().isdisjoint(numbers):
                continue
            for which, others in (
                ("the step with the same number from the end", numbers[::-1]),
                ("the previous step", [numbers[0], *numbers[:-1]]),
                ("the next step", [*numbers[1:], numbers[-1]]),
            ):
                what = "the mask, " if self.tape.values[numbers[0]].dtype is torch.bool else ""
                said = f"in all of backward, each step of the loop uses {what}{self.name(numbers[0])}, of {which}"
                pairs = list(zip(numbers, others, strict=True))
                yield Change("another operand", said, values=lambda t, p=pairs: {n: t.values[m] for n, m in p})

    def _sources(self, last: Step) -> dict[int, list[Step]]:
        """Gradients from which a step's result is computed, and the steps between, the last first."""
        sources: dict[int, list[Step]] = {}
        for n in reversed(self.tape.needed):
            step = self.tape.backward[n]
            if step is last or any(number in sources for number in step.results):
                behind = [] if step is last else max((sources[r] for r in step.results if r in sources), key=len)
                for number in step.numbers:
                    if number in self.inside or number in self.tape.names:
                        sources.setdefault(number, [*behind, step])
        return sources

    def recomputed_values(self) -> Iterator[Change]:
        """A step of forward changed for backward alone, with all that is computed from its result."""
        for places, kind, words, change in forward_changes(self.tape, self.name):
            yield Change(kind, f"backward uses the values that forward has if {words}", forward=(places, change))

    def other_arguments(self) -> Iterator[Change]:
        """Another number, dimension or truth value in a step."""
        for step, where in self.steps():
            for kind, said, change in other_arguments(step, _dims(step, self.tape)):
                yield Change(kind, where + said, step.key, change)

    def changed_operands(self) -> Iterator[Change]:
        """An operand changed by itself."""
        return self._with_operands(self._changed)

    def equal_slices(self) -> Iterator[Change]:
        """The mean, the first or the last slice of an operand in the place of all."""
        return self._with_operands(self._equal_slices)

    def operands_of_changed_steps(self) -> Iterator[Change]:
        """An operand that is computed again with a step of forward changed, where other values are not."""
        return self._with_operands(self._computed_again)

    def other_operands(self) -> Iterator[Change]:
        """Another tensor in the place of an operand."""
        return self._with_operands(self._others)

    def _with_operands(self, replacements: Replacements) -> Iterator[Change]:
        """Something else in the place of an operand, in one use; then of a tensor of forward in all uses."""
        for step, where in self.steps():
            for position, argument in enumerate(step.arguments):
                if isinstance(argument, Ref):
                    for kind, words, value in replacements(argument.number):
                        yield Change(kind, where + words, step.key, operand=(position, value))
        for number, count in self.uses.items():
            if count > 1 and number not in self.inside:
                for kind, words, value in replacements(number):
                    yield Change(kind, f"in backward, {words}", instead=(number, value))

    def _computed_by(self, number: int) -> tuple[Step | None, list[Step]]:
        """The step of forward that computes a tensor, and those after it that change its form alone."""
        forms: list[Step] = []
        step = self.producers.get(number)
        while step is not None and step.name in FORMS:
            source = step.arguments[0] if step.arguments else None
            if not isinstance(source, Ref) or step.name.endswith("_"):
                return None, []
            forms.insert(0, step)
            step = self.producers.get(source.number)
        return step, forms

    def _changed(self, number: int) -> Iterator[Replacement]:
        """The operand changed by itself, or forward's operation that computes it."""
        tensor, name = self.tape.values[number], self.name(number)
        producer, forms = self._computed_by(number)
        if producer is not None:
            changes: list[tuple[str, str, StepChange]] = []
            for position in left_out(producer, self.tape):
                source = self.name(producer.arguments[position])
                words = f"{operation_words(producer, self.name)} is left out ({source} is used instead of {name})"
                changes.append(("step left out", words, passing(position)))
            changes += [(kind, f"{words}, in {name}", change) for kind, words, change in other_operations(producer)]
            changes += [
                (kind, f"{words}, in {name}", change)
                for kind, words, change in other_arguments(producer, tensor.dim())
            ]
            for kind, words, change in changes:
                yield kind, words, lambda tape, k, c=change: _produced(tape, producer, c, forms, k)
            for words, position, other in self._other_indices(producer):
                yield "another operand", f"{words}, in {name}", lambda tape, k, p=position, o=other: _produced(
                    tape, producer, lambda s, flat: s.call([*flat[:p], o(tape), *flat[p + 1 :]]), forms, k
                )  # fmt: skip
        # What a step of backward passes to one other alone is moved where :meth:`results` changes its result.
        is_passed_on = number in self.inside and self.uses[number] == 1
        for kind, words, function in changed_operand(tensor, name, is_moved=not is_passed_on):
            yield kind, words, lambda tape, k, f=function: f(tape.values[k])

    def _computed_again(self, number: int) -> Iterator[Replacement]:
        """The operand with a change in the steps before the one that computes it."""
        direct, forms = self._computed_by(number)
        places = sorted(ancestors(self.tape, number, self.producers))
        for k, place in enumerate(places):
            step = self.tape.forward[place]
            if step is direct or step in forms or step.name in FORMS:
                continue
            where = f"in {step.words.removeprefix('the result of ')}"
            name, without = self.name(number), operation_words(step, self.name)
            used = {p: f"{self.name(step.arguments[p])} is used in its place" for p in left_out(step, self.tape)}
            changes = [
                ("step left out", f"{name} is computed without {without} ({words})", passing(p))
                for p, words in used.items()
            ]
            changes += [
                (kind, f"{name} is computed with another value: {where}, {words}", change)
                for kind, words, change in other_operations(step)
            ]
            for kind, said, change in changes:
                yield kind, said, lambda tape, n, c=change, p=places[k:]: operand_with(tape, p, c, n)

    def _other_indices(self, step: Step) -> Iterator[tuple[str, int, Callable[[Tape], Tensor]]]:
        """Words, position and value of other indices in the place of those of a step."""
        for position, argument in enumerate(step.arguments):
            own = self.tape.values[argument.number] if isinstance(argument, Ref) else None
            if own is None or own.dtype is not torch.int64:
                continue
            for number, other in enumerate(self.tape.values):
                if other.dtype == own.dtype and other.shape == own.shape and not torch.equal(other, own):
                    words = f"{self.name(number)} is used instead of {self.name(argument)}"
                    yield words, position, lambda tape, n=number: tape.values[n]
            for words, function in other_indices(own):
                said = words.replace("the indices are", f"the indices in {self.name(argument)} are")
                yield said, position, lambda tape, f=function, n=argument.number: f(tape.values[n])

    def _equal_slices(self, number: int) -> Iterator[Replacement]:
        """One slice of the operand for all."""
        for kind, words, function in equal_slices(self.tape.values[number], self.name(number)):
            yield kind, words, lambda tape, k, f=function: f(tape.values[k])

    def _others(self, number: int) -> Iterator[Replacement]:
        """Another tensor in the place of the operand, or as a factor of it."""
        tensor, name = self.tape.values[number], self.name(number)
        for other in self._candidates(number):
            if self.name(other) == name and number in self.inside:
                continue  # a sentence that says "a instead of a" is no name
            for words, join in combinations(name, self.name(other)):
                if tensor.is_floating_point() or "instead" in words:
                    yield (
                        "another operand", words,
                        lambda tape, k, j=join, o=other: j(tape.values[k], tape.values[o]),
                    )  # fmt: skip

    def _candidates(self, number: int) -> list[int]:
        """Numbers of the tensors that may stand in the place of one: inputs, results of forward, then of backward."""
        tensor = self.tape.values[number]
        fitting = [
            k for k, other in enumerate(self.tape.values)
            if k != number and fits(tensor, other)
        ]  # fmt: skip
        return sorted(fitting, key=lambda k: k in self.inside)[:MAX_CANDIDATES]

    def results(self) -> Iterator[Change]:
        """The result of a step transposed, flipped, shifted, averaged or summed."""
        for step, where in self.steps():
            numbers = [number for number in step.results if number is not None]
            if len(numbers) != 1 or step.name.endswith("_") or step.name in ("detach", "alias"):
                continue
            words = f"the result of {operation_words(step, self.name)}"
            for t in transformations(self.tape.values[numbers[0]].shape):
                yield Change(
                    t.kind, f"{where}{words} is {t.description}", step.key,
                    lambda s, flat, t=t: [t.apply(s.call(flat)[0]).contiguous()],
                )  # fmt: skip


def _dims(step: Step, tape: Tape) -> int:
    return max((tape.values[a.number].dim() for a in step.arguments if isinstance(a, Ref)), default=0)


def _produced(tape: Tape, producer: Step, change: StepChange, forms: list[Step], number: int) -> Tensor:
    """The tensor with a number where the step of forward that computes it is changed."""
    (value,) = change(producer, tape.flat(producer))
    for form in forms:
        (value,) = form.call([value, *tape.flat(form)[1:]])
    if value.shape != tape.values[number].shape:
        raise ValueError("the shapes differ")
    return value
