"""A gradient that equals native's with one change in the derivative of one operation of native."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from compare.gradients.diagnosis import changed_native as changed
from compare.gradients.diagnosis.changed_native import NativeChange
from compare.gradients.diagnosis.changed_operands import find_changed_operands
from compare.gradients.diagnosis.changed_steps import (
    find_other_values,
    find_passed_through,
    find_passed_through_alone,
)
from compare.gradients.diagnosis.composite_backwards import find_changed_composites, find_foreign_derivatives
from compare.gradients.diagnosis.exchanged_operands import find_exchanged_operands
from compare.gradients.diagnosis.findings import Finding
from compare.gradients.diagnosis.native_paths import Hypothesis, NativePaths
from compare.gradients.diagnosis.quotient_backwards import find_changed_quotients
from compare.gradients.diagnosis.scaled_paths import find_pairs_of_paths, find_scaled_paths, find_single_steps
from compare.gradients.diagnosis.transformations import transformations


def find_path_findings(search: NativePaths) -> Iterator[Finding]:
    """Every finding that explains both draws; those with the fewest free numbers first."""
    if not search.is_traced:
        return
    for find in (
        find_scaled_paths, find_changed_composites, find_pairs_of_paths, find_passed_through, find_other_values,
        find_foreign_derivatives, find_changed_quotients, find_changed_operands, find_exchanged_operands,
        find_transformed_gradients, find_single_steps,
    ):  # fmt: skip
        yield from _explained(search, find(search))


def find_scaled_path_findings(search: NativePaths) -> Iterator[Finding]:
    """After :func:`find_path_findings`: changes that explain both draws with a factor besides."""
    yield from _explained(search, search.scaled_findings())


def find_late_path_findings(search: NativePaths) -> Iterator[Finding]:
    """Changes of several derivatives at once, for which a step of the tape may be a simpler explanation."""
    yield from _explained(search, find_passed_through_alone(search) if search.is_traced else iter(()))


def _explained(search: NativePaths, findings: Iterator[Finding]) -> Iterator[Finding]:
    for finding in findings:
        if search.change is not None:
            search.probe.explanations[finding.kind, finding.statement] = search.change
        yield finding


def find_transformed_gradients(search: NativePaths) -> Iterator[Finding]:
    """The gradient at one operation transposed, flipped, shifted, averaged or summed."""
    yield from search.findings(_transformed_gradients(search))


def _transformed_gradients(search: NativePaths) -> Iterator[Hypothesis]:
    tried: set[Any] = set()
    for path in search.paths:
        site, position = path.call.site, path.position
        flat = path.call.flat
        places = [("comes out of", flat[position].shape, changed.argument_gradient)]
        if site not in tried:
            places.append(("goes into", path.call.result.shape, changed.with_gradient))
        tried.add(site)
        for verb, shape, place in places:
            for t in transformations(shape):
                change = NativeChange(site, position, place(t.apply))
                statement = f"in backward, the gradient that {verb} the derivative of {path.words} is {t.description}"
                statement += ", and in native's it is not"
                yield Hypothesis(t.kind, statement, change, path)
