"""The search for single edits of the user's source that make what is wrong right."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout

from compare.gradients.case_runner import CaseRunner
from compare.gradients.diagnosis.mismatch import Mismatch
from compare.gradients.diagnosis.probe import Probe
from compare.gradients.measure import WRONG
from compare.gradients.source_changes.called_functions import find_called_functions
from compare.gradients.source_changes.candidate import Candidate
from compare.gradients.source_changes.candidates import Candidates
from compare.gradients.source_changes.correction import Correction, correction, of_parts, separated
from compare.gradients.source_changes.editable_function import exchanged
from compare.gradients.source_changes.edited_runs import RUN_CALLS, EditedRuns
from compare.gradients.source_changes.effects import Effects
from compare.gradients.source_changes.goals import Goal
from compare.gradients.source_changes.influence import Influence
from compare.gradients.source_changes.kept_values import KeptValues
from compare.gradients.source_changes.obstacles import find_obstacle, left_out
from compare.gradients.source_changes.search_result import AT_LIMIT, SearchResult, not_tried
from compare.gradients.source_changes.value_search import ValueSearch
from compare.gradients.source_changes.watched_functions import classes_of, watched
from compare.gradients.variants import Variant

# Calls of functions in all runs of a search, with RUN_CALLS for each run besides: about a second; fewer where the
# mistakes have names already.
MAX_CALLS, MAX_CALLS_IF_NAMED = 500_000, 250_000
MAX_COMPARISONS = 20  # of edited functions in all variants
MAX_ELEMENTS = 100_000  # of all inputs: the numbers of larger ones cost more than the calls do
ALTERNATIVES = 6


def search(
    runner: CaseRunner,
    mismatches: Sequence[Mismatch],
    variants: Sequence[Variant],
    max_calls: int = MAX_CALLS,
    probe: Probe | None = None,
    kept: KeptValues | None = None,
) -> SearchResult:
    """Find the nearest edits with which nothing is wrong in any variant; without one, those for some quantities.

    Args:
        mismatches: everything that is wrong.
        variants: those that were compared.
        max_calls: limit of the work, in calls of functions.
        probe: asks for further draws; without one, values of native's are not tried.
        kept: what the function keeps from call to call, from before its first call on.
    """
    if sum(value.numel() for value in mismatches[0].inputs.values()) > MAX_ELEMENTS:
        return SearchResult([], not_tried(f"the inputs have more than {MAX_ELEMENTS:,} elements"))
    kept = kept or KeptValues(runner.case.ours)
    with (
        open(os.devnull, "w") as nowhere,
        redirect_stdout(nowhere),  # or each run would print
        kept.own_caches(KeptValues(runner.case.native)),
        kept.restored(),
    ):
        return _Search(runner, mismatches, variants, probe, kept).find(max_calls)


class _Search:
    """A search that is under way.

    Attributes:
        corrections: those that are known, with the cost of their edits.
    """

    def __init__(
        self,
        runner: CaseRunner,
        mismatches: Sequence[Mismatch],
        variants: Sequence[Variant],
        probe: Probe | None,
        kept: KeptValues,
    ) -> None:
        self.runner, self.mismatches, self.variants, self.probe = runner, mismatches, variants, probe
        first = mismatches[0]
        self.targets = [m for m in mismatches if m.variant == first.variant]
        self.goals = [Goal(target) for target in self.targets]
        self.wrong = frozenset(m.quantity for m in mismatches)
        self.raises = first.run.error is not None  # then nothing is known of the other quantities
        self.runs = EditedRuns(runner, first, kept)
        self.effects = Effects(self.targets)
        self.comparisons = float(MAX_COMPARISONS)
        self.corrections: list[tuple[int, Correction]] = []
        with self.runs.from_the_start():
            called, self.num_calls = find_called_functions(self.runs.run_once)
        kept.add(function for each in called for function in each.functions)
        # An edit of what native calls, too, would change what is right.
        run_native = (lambda: runner.run_native(first.variant)) if runner.case.native is not None else list
        with self.runs.from_the_start():
            by_native = {each.code for each in find_called_functions(run_native)[0]}
        editable = [each for each in called if each.code not in by_native]
        self.candidates = Candidates(editable)
        with self.runs.from_the_start():
            saved = kept.save()
            self.runs.run_once()
            self.obstacle = find_obstacle(called, editable, self.candidates, saved, KeptValues(runner.case.native))
        self.functions = Candidates(called).functions  # whose values may be recorded
        self.classes = classes_of({f for each in called for f in each.functions})
        self.left_out = left_out(called, editable, self.candidates)
        self.is_at_limit = self.sums_gradients = False
        if not self.obstacle:
            self.runs.prepare(self.num_calls)
            if not self.raises:
                max_runs = MAX_CALLS_IF_NAMED // (RUN_CALLS + self.num_calls)
                self.candidates.rank = Influence(self.candidates, self.runs, self.targets, max_runs).rank
            self.sums_gradients = self._sums_gradients()

    def find(self, max_calls: int) -> SearchResult:
        """Find corrections, and without one say what was not tried."""
        if self.obstacle:
            return SearchResult([], not_tried(self.obstacle))
        corrections = self._corrections(max_calls)
        if corrections:
            return SearchResult(corrections)
        if self.is_at_limit:
            return SearchResult([], AT_LIMIT)
        return SearchResult([], f"Not all of the source was changed, since {self.left_out}." if self.left_out else "")

    def _corrections(self, max_calls: int) -> list[Correction]:
        """Try single edits, two together, terms that fit; then the rarer edits.

        Terms come before the rarer edits, since they take no run each. Where nothing is enough, a value is told.
        """
        left = self._try_single_edits(self.candidates.first(), max_calls)
        if self._corrected != self.wrong:
            self._try_single_edits(self.candidates.later(), max_calls // 4)
        before = list(self.corrections)
        self._try_pairs()
        # A term or a factor may be plainer than two edits of one statement.
        in_one_statement = [c for c in self.corrections if c not in before and len(c[1].changes) == 1]
        self.corrections = [c for c in self.corrections if c not in in_one_statement]
        values = self._try_terms()
        self.corrections += in_one_statement
        parts = None if self.corrections else self._parts()
        if parts is not None:
            return [parts]
        if self._corrected != self.wrong:
            self._try_single_edits(self.candidates.second(), left)
            self._try_pairs()
        if self._complete:
            return separated(self._complete, [c for _, c in self.corrections])
        told = None if values is None or self._corrected == self.wrong else values.told()
        if not self.corrections:
            told = self._parts() or told
        return [*(c for _, c in self.corrections), *([told] if told is not None else [])]

    @property
    def _complete(self) -> list[Correction]:
        return [c for _, c in self.corrections if c.makes_all_right]

    @property
    def _corrected(self) -> frozenset[str]:
        return frozenset().union(*(c.quantities for _, c in self.corrections))

    def _try_single_edits(self, candidates: Iterator[Candidate], max_calls: int) -> int:
        """Try one edit after the other; return what is left of the calls."""
        if max_calls < 0:  # to put the candidates in order would take time
            self.is_at_limit = True
            return max_calls
        for candidate in candidates:
            self.is_at_limit = max_calls < 0 or self.comparisons <= 0
            if self.is_at_limit or self._is_enough(candidate):
                break
            if self._try(candidate):
                max_calls -= self.runs.cost
        return max_calls

    def _try_pairs(self) -> None:
        """Try two together of the edits so far."""
        if self._corrected == self.wrong:
            return
        self.comparisons = MAX_COMPARISONS
        for first, second in self.effects.pairs():
            self._try(Candidate((*first.parts, *second.parts)))
            if self._complete:
                break

    def _try_terms(self) -> ValueSearch | None:
        """Try terms that make an expression what it should be, for what no edit makes right."""
        targets = [target for target in self.targets if target.quantity not in self._corrected]
        if not targets or self.raises or self._complete:
            return None
        self.comparisons = MAX_COMPARISONS
        values = ValueSearch(self.candidates, self.functions, self.runs, targets, self.probe)
        for candidate in values.fitting_terms():
            self._try(candidate)
            if self._corrected == self.wrong:
                break
        return values

    def _parts(self) -> Correction | None:
        """Two edits of which each makes a part of the wrong elements right."""
        quantities = frozenset(target.quantity for target in self.targets)
        parts = [(correction(candidate, quantities, False), words) for candidate, words in self.effects.parts()]
        if len(parts) != 2 or any(len(each.changes) > 1 for each, _ in parts):
            return None
        return of_parts(parts[0][0], parts[1][0], [words for _, words in parts])

    def _is_enough(self, candidate: Candidate) -> bool:
        complete = [cost for cost, known in self.corrections if known.makes_all_right]
        return len(complete) == ALTERNATIVES or bool(complete and candidate.cost > complete[0])

    def _try(self, candidate: Candidate) -> bool:
        """Run with the edits; keep them if they correct something. Return True if there was a run."""
        with candidate.made():
            codes = candidate.compiled()
            if codes is None:
                return False
            result = self.runs.run_edited(codes)
            self.effects.add(candidate, result)
            right = frozenset(goal.quantity for goal in self.goals if goal.is_reached(result))
            known = [c.quantities for _, c in self.corrections]
            if not right or any(right <= quantities and right != self.wrong for quantities in known):
                return True  # the nearest edit for these quantities is known
            with self.runs.from_the_start(), exchanged(codes):
                if not self.sums_gradients and self._sums_gradients():  # right only since autograd sums it
                    return True
                still_wrong = self._still_wrong()
        if still_wrong < self.wrong or (self.raises and still_wrong and not self.wrong & still_wrong):
            corrected = correction(candidate, self.wrong - still_wrong, not still_wrong)
            self.corrections.append((candidate.cost, corrected))
        return True

    def _sums_gradients(self) -> bool:
        """True if backward returns a gradient that has another shape than its input."""
        with watched(self.classes) as calls:
            self.runs.run()
        return any(call.returns_other_shapes for call in calls)

    def _still_wrong(self) -> frozenset[str]:
        """Names of what is wrong in any variant with the code as it is, until no less is wrong than before."""
        fresh = copy.copy(self.runner)
        fresh.mismatches, fresh.examples = [], {}
        wrong: set[str] = set()
        first = dict.fromkeys(m.variant for m in self.mismatches)
        for variant in [*first, *(v for v in self.variants if v not in first)]:
            self.comparisons -= 1 / len(self.variants)
            wrong |= {row.quantity for row in fresh.rows(variant) if row.status == WRONG}
            if not self.raises and not wrong < self.wrong:
                return self.wrong | wrong
        return frozenset(wrong)
