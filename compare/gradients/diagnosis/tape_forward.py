"""Values of forward computed again with one step changed, as by a backward that recomputes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from compare.gradients.diagnosis.tape import Ref, Step, StepChange, Tape
from compare.gradients.diagnosis.tape_operations import (
    FORMS,
    left_out,
    operation_words,
    other_arguments,
    other_operations,
    passing,
)

ForwardChange = tuple[int, str, str, StepChange]  # place among the steps of forward, kind, words, change


def recomputed(tape: Tape, place: int, change: StepChange) -> dict[int, Tensor]:
    """The values of forward that differ after a change of the step at ``place``, by number.

    Raises:
        ValueError: the change gives other shapes, or is of a tape with in-place operations.
    """
    values: dict[int, Any] = {}
    for n, step in enumerate(tape.forward[place:]):
        if n and values.keys().isdisjoint(step.numbers):
            continue
        if step.name.endswith("_"):
            raise ValueError("an in-place operation cannot run twice")
        flat = [values.get(a.number, tape.values[a.number]) if isinstance(a, Ref) else a for a in step.arguments]
        for number, value in zip(step.results, step.call(flat) if n else change(step, flat), strict=True):
            if number is not None:
                if value.shape != tape.values[number].shape:
                    raise ValueError("the shapes differ")
                values[number] = value
                tape.add_cost(value)
    return values


def forward_changes(tape: Tape, name: Callable[[Any], str]) -> Iterator[ForwardChange]:
    """Changes of those steps of forward from whose results other values are computed that backward uses."""
    used = {number for n in tape.needed for number in tape.backward[n].numbers}
    for place, step in enumerate(tape.forward):
        if step.name in FORMS or not _dependents(tape, place) & used:
            continue
        where = step.words.removeprefix("the result of ")
        if step.name == "cat":
            yield from _without_parts(place, step, where, name)
        for position in left_out(step, tape):
            yield place, "step left out", f"{operation_words(step, name)} is left out of {where}", passing(position)
        for kind, words, change in other_operations(step):
            yield place, kind, f"in {where}, {words}", change
        dims = max((tape.values[number].dim() for number in step.numbers), default=0)
        for words, change in other_arguments(step, dims):
            yield place, "another operand", f"in {where}, {words}", change


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


def _without_parts(place: int, step: Step, where: str, name: Callable[[Any], str]) -> Iterator[ForwardChange]:
    """A concatenation without one of its parts."""
    for position, argument in enumerate(step.arguments):
        if isinstance(argument, Ref):
            for instead, words in ((-math.inf, "minus infinity"), (0.0, "0")):
                said = f"{name(argument)} is left out of {where} ({words} in its place)"
                yield place, "step left out", said, _filled(position, instead)


def _filled(position: int, value: float) -> StepChange:
    def change(step: Step, flat: list[Any]) -> list[Any]:
        return step.call([*flat[:position], torch.full_like(flat[position], value), *flat[position + 1 :]])

    return change
