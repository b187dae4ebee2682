"""Influence of expressions on the wrong numbers: an edit within one can make no others right."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compare.gradients.diagnosis.mismatch import Mismatch
from compare.gradients.numbers import as_real
from compare.gradients.run_variant import RunResult
from compare.gradients.source_changes.candidates import Candidates, Rank
from compare.gradients.source_changes.edited_runs import EditedRuns
from compare.gradients.source_changes.edits import Site
from compare.gradients.source_changes.ending_loops import may_count_values
from compare.gradients.source_changes.insertion_edits import is_value
from compare.gradients.source_changes.places import Place, one_by_one
from compare.gradients.source_changes.recorded_values import INSTEAD, builtin, record_values

MAX_PLACES = 150  # in each function
TRIALS = 3
RELATIVE_ERROR = 1e-5  # of what is right: changes of its rounding do not count
FAR = 10  # times the largest number: a comparison with it changes


@dataclass(frozen=True)
class _Numbers:
    """Numbers that a run gives: the wrong elements of each target, and everything that is right."""

    wrong: list[Tensor]
    right: list[Tensor]


class Influence:
    """The influence of the expressions of some functions, seen in runs in which they have other values.

    An expression is left out if a copy of its value changes what a run gives: others write into it, or it into
    others. Nothing is tried where the number of a loop's steps may depend on such a value.

    Args:
        targets: what is wrong in the variant of the runs.
        max_runs: the influence of the expressions that come after so many is not known.
    """

    def __init__(self, candidates: Candidates, runs: EditedRuns, targets: Sequence[Mismatch], max_runs: int) -> None:
        self._runs, self._targets, self._runs_left = runs, targets, max_runs
        self._ranks: dict[int, Rank] = {}
        if any(may_count_values(function.node) for function, _ in candidates.functions):
            return
        before = self._numbers(runs.run())
        if before is None:
            return
        for function, sites in candidates.functions:
            own = [site for site in sites if is_value(site, function.called) and not _is_written(site)][:MAX_PLACES]
            values = record_values(function, own, runs.run)
            for n, present in values.items():
                if self._runs_left <= 0:
                    return
                place = Place(function, own[n], present, (own, values))
                rank = self._rank(place, before) if present[0].numel() and not _is_whole(present[0]) else None
                if rank is not None:
                    self._ranks[id(own[n].node)] = rank

    def rank(self, site: Site) -> Rank:
        """Rank of the smallest expression with a known influence that the site is in."""
        nodes = (site.node, *reversed(site.ancestors))
        return next((self._ranks[id(node)] for node in nodes if id(node) in self._ranks), Rank.FIRST)

    def _rank(self, place: Place, before: _Numbers) -> Rank | None:
        copied = self._with_values(place, place.present)
        if copied is None or _any(_changes(before.wrong, copied.wrong)) or _any(_changes(before.right, copied.right)):
            return None
        wrong = [torch.zeros(1, dtype=torch.bool).expand(len(values)) for values in before.wrong]
        is_known = changes_right = False
        for trial in range(TRIALS):
            numbers = self._with_values(place, [other_numbers(value, trial) for value in place.present])
            if numbers is None:
                continue
            is_known = True
            wrong = [a | b for a, b in zip(wrong, _changes(before.wrong, numbers.wrong), strict=True)]
            changes_right |= _any(_changes(before.right, numbers.right, RELATIVE_ERROR))
            if changes_right and _any(wrong):  # whatever other numbers do
                return Rank.LATER
        if not is_known:
            return None
        if not _any(wrong):
            return Rank.NEVER
        return Rank.LATER if changes_right or not any(len(all_) and all_.all() for all_ in wrong) else Rank.FIRST

    def _with_values(self, place: Place, values: list[Tensor]) -> _Numbers | None:
        codes = place.code_with_value
        if codes is None:
            return None
        self._runs_left -= 1
        with builtin(INSTEAD, one_by_one(values, values[0].dtype)):
            return self._numbers(self._runs.run_edited(codes))

    def _numbers(self, result: RunResult) -> _Numbers | None:
        """The numbers of a run; None if it raised."""
        if result.error is not None:
            return None
        wrong = []
        for target in self._targets:
            value = result.values.get(target.quantity)
            numbers = torch.zeros(0) if value is None else as_real(value).cpu()
            if target.wrong is not None and target.wrong.shape == numbers.shape:
                numbers = numbers[target.wrong.cpu()]
            wrong.append(numbers.flatten())
        names = {target.quantity for target in self._targets}
        right = [
            as_real(v).cpu().flatten() for name, v in result.values.items() if v is not None and name not in names
        ]
        return _Numbers(wrong, right)


def _changes(before: Sequence[Tensor], now: Sequence[Tensor], relative_error: float = 0.0) -> list[Tensor]:
    """Masks of the numbers that are others; all of them where there are more or fewer."""
    if len(before) != len(now):
        return [torch.ones(len(values), dtype=torch.bool) for values in before]
    return [
        ~torch.isclose(b, a, rtol=relative_error, atol=0.0, equal_nan=True)
        if len(a) == len(b)
        else torch.ones(len(a), dtype=torch.bool)
        for a, b in zip(before, now, strict=True)
    ]


def _any(masks: Sequence[Tensor]) -> bool:
    return any(mask.any() for mask in masks)


def _is_written(site: Site) -> bool:
    """True for what a method writes into, and for a call by itself."""
    parent = site.ancestors[-1]
    return isinstance(parent, ast.Expr) or (isinstance(parent, ast.Attribute) and parent.attr.endswith("_"))


def _is_whole(value: Tensor) -> bool:
    """True for whole numbers: another one may be no index."""
    return not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)


def other_numbers(value: Tensor, trial: int) -> Tensor:
    """Numbers of the other sign, or far above or far below; for truth values the opposite, or all the same."""
    if value.dtype == torch.bool:
        return ~value if trial == 0 else torch.full_like(value, trial == 1)
    value = value.nan_to_num()
    generator = torch.Generator().manual_seed(trial)
    random = (torch.rand(value.shape, generator=generator, dtype=torch.float64) + 0.5).to(value.device, value.dtype)
    size = value.abs().max().clamp(min=1)
    if trial == 0:
        return -value * random - 0.1 * size * random
    return value + (FAR if trial == 1 else -FAR) * size * random
