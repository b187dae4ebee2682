"""Values of forward computed again with one step changed, as by a backward that recomputes them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from compare.gradients.diagnosis.tape import Ref, Step, StepChange, Tape
from compare.gradients.diagnosis.tape_operands import changed_operand, equal_slices, fits
from compare.gradients.diagnosis.tape_operations import (
    FORMS,
    left_out,
    operation_words,
    other_arguments,
    other_operations,
    passing,
)

DEPTH = 6  # steps between a tensor of forward and a changed one that it is computed from
Places = tuple[int, ...]  # of equal steps among those of forward: operations with the same arguments
Inputs = Callable[[Tape], dict[int, Tensor]]
ForwardChange = tuple[Places, str, str, StepChange]  # with kind and words


def recomputed(
    tape: Tape, places: Places = (), change: StepChange | None = None, given: dict[int, Tensor] | None = None
) -> dict[int, Tensor]:
    """The values of forward that differ after a change of the steps at ``places``, or with ``given`` inputs.

    Raises:
        ValueError: the change gives other shapes, or is of a tape with in-place operations.
    """
    values: dict[int, Any] = dict(given or {})
    for n in range(places[0] if places else 0, len(tape.forward)):
        step = tape.forward[n]
        if n not in places and values.keys().isdisjoint(step.numbers):
            continue
        if step.name.endswith("_"):
            raise ValueError("an in-place operation cannot run twice")
        flat = [values.get(a.number, tape.values[a.number]) if isinstance(a, Ref) else a for a in step.arguments]
        for number, value in zip(step.results, change(step, flat) if n in places else step.call(flat), strict=True):
            if number is not None:
                if value.shape != tape.values[number].shape:
                    raise ValueError("the shapes differ")
                values[number] = value
                tape.add_cost(value)
    return values


def with_dependents(tape: Tape, given: dict[int, Tensor]) -> dict[int, Tensor]:
    """Values in the place of results of forward, and those that are computed from these alone, such as 1 - z of z."""
    values = dict(given)
    for step in tape.forward:
        if step.numbers and values.keys() >= set(step.numbers) and not step.name.endswith("_"):
            flat = [values[a.number] if isinstance(a, Ref) else a for a in step.arguments]
            for number, value in zip(step.results, step.call(flat), strict=True):
                if number is not None and number not in given:
                    values[number] = value
                    tape.add_cost(value)
    return values


def ancestors(tape: Tape, number: int, producers: dict[int, Step]) -> dict[int, int]:
    """Places of the steps of forward from which a tensor is computed, and their distances to it, up to ``DEPTH``."""
    places = {id(step): n for n, step in enumerate(tape.forward)}
    distances: dict[int, int] = {}
    numbers = {number}
    for distance in range(DEPTH):
        level = [producers[n] for n in numbers if n in producers]
        for step in level:
            distances.setdefault(places[id(step)], distance)
        numbers = {n for step in level for n in step.numbers}
    return distances


def operand_with(tape: Tape, places: list[int], change: StepChange, number: int) -> Tensor:
    """A tensor of forward that is computed again by the steps at ``places`` in order, the first of them changed.

    Raises:
        ValueError: the change gives another shape, or a step is in place.
    """
    values: dict[int, Any] = {}
    for k, n in enumerate(places):
        step = tape.forward[n]
        if step.name.endswith("_"):
            raise ValueError("an in-place operation cannot run twice")
        flat = [values.get(a.number, tape.values[a.number]) if isinstance(a, Ref) else a for a in step.arguments]
        results = change(step, flat) if k == 0 else step.call(flat)
        values.update({m: value for m, value in zip(step.results, results, strict=True) if m is not None})
    if values[number].shape != tape.values[number].shape:
        raise ValueError("the shapes differ")
    return values[number]


def forward_changes(tape: Tape, name: Callable[[Any], str]) -> Iterator[ForwardChange]:
    """Changes of those steps of forward from whose results other values are computed that backward uses."""
    used = {number for n in tape.needed for number in tape.backward[n].numbers}
    for places in _equal_steps(tape):
        step = tape.forward[places[0]]
        if step.name in FORMS or (len(places) == 1 and not _dependents(tape, places[0]) & used):
            continue
        where = step.words.removeprefix("the result of ")
        result = step.results[0] if step.results else None
        if (
            result is not None
            and not tape.values[result].is_floating_point()
            and not tape.values[result].is_complex()
        ):
            where = f"the {'mask' if tape.values[result].dtype is torch.bool else 'index'} {where}"
        where += f" (and in {len(places) - 1} more of these)" if len(places) > 1 else ""
        if step.name == "cat":
            yield from _without_parts(places, step, where, name)
        for position in left_out(step, tape):
            yield places, "step left out", f"{operation_words(step, name)} is left out of {where}", passing(position)
        for kind, words, change in other_operations(step):
            yield places, kind, f"in {where}, {words}", change
        dims = max((tape.values[number].dim() for number in step.numbers), default=0)
        for kind, words, change in other_arguments(step, dims):
            yield places, kind, f"in {where}, {words}", change


def changed_inputs(tape: Tape) -> Iterator[tuple[str, str, Inputs]]:
    """Kind, words, and the inputs that backward has in the place of its own: changed copies, or two exchanged."""
    used = [number for number in tape.names if number not in tape.incoming]
    for number in used:
        tensor, name = tape.values[number], tape.names[number]
        # Rows that are all alike would have ties where native has none; one number for each head or channel has not.
        alike = equal_slices(tensor, name) if max(tensor.shape, default=0) == tensor.numel() else ()
        for kind, words, function in (*changed_operand(tensor, name), *alike):
            if kind != "missing term":
                kind, words = _with_name(kind, words, tensor, tape.names[number])
                yield kind, words, lambda tape, n=number, f=function: {n: f(tape.values[n]).clone()}
    for a, b in itertools.combinations(used, 2):
        if fits(tape.values[a], tape.values[b]) and tape.values[a].shape == tape.values[b].shape:
            words = f"{tape.names[a]} and {tape.names[b]} are exchanged"
            yield "another operand", words, lambda tape, a=a, b=b: {a: tape.values[b], b: tape.values[a]}


def _with_name(kind: str, words: str, tensor: Tensor, name: str) -> tuple[str, str]:
    """Kind and words of a change of indices, with the input's name; of 0 and 1 as values of a mask."""
    for which in ("first", "last"):
        if words.startswith(f"the {which} index is used") and bool(((tensor == 0) | (tensor == 1)).all()):
            return "another operand", f"the {which} value of {name} is used for each element"
        words = words.replace(f"the {which} index is used", f"the {which} index in {name} is used")
    return kind, words.replace("the indices are", f"the indices in {name} are")


def _equal_steps(tape: Tape) -> list[Places]:
    """Places of the steps, those with the same operation and arguments together."""
    groups: dict[str, list[int]] = {}
    for n, step in enumerate(tape.forward):
        groups.setdefault(f"{step.function} {step.arguments}", []).append(n)
    return [tuple(places) for places in groups.values()]


def _dependents(tape: Tape, place: int) -> set[int]:
    """Numbers of the tensors that are computed from a step's result by more than a change of form."""
    own = {number for number in tape.forward[place].results if number is not None}
    dependents: set[int] = set()
    for step in tape.forward[place + 1 :]:
        results = {number for number in step.results if number is not None}
        if dependents.intersection(step.numbers) or (own.intersection(step.numbers) and step.name not in FORMS):
            dependents |= results
        elif own.intersection(step.numbers):
            own |= results
    return dependents


def _without_parts(places: Places, step: Step, where: str, name: Callable[[Any], str]) -> Iterator[ForwardChange]:
    """A concatenation without one of its parts."""
    for position, argument in enumerate(step.arguments):
        if isinstance(argument, Ref):
            for instead, words in ((-math.inf, "minus infinity"), (0.0, "0")):
                said = f"{name(argument)} is left out of {where} ({words} in its place)"
                yield places, "step left out", said, _filled(position, instead)


def _filled(position: int, value: float) -> StepChange:
    def change(step: Step, flat: list[Any]) -> list[Any]:
        return step.call([*flat[:position], torch.full_like(flat[position], value), *flat[position + 1 :]])

    return change
