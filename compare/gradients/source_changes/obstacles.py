"""Reasons why no change of the source is tried, each as words that follow "since"."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from compare.gradients.diagnosis.wording import join_words
from compare.gradients.source_changes.called_functions import CalledFunction
from compare.gradients.source_changes.candidates import Candidates
from compare.gradients.source_changes.endless_loops import endless_loop
from compare.gradients.source_changes.kept_values import KeptValues
from compare.gradients.source_changes.outside_effects import changed_object, in_words, outside_effect
from compare.gradients.source_changes.saved_values import SavedValues

MAX_NAMES = 3


def find_obstacle(
    called: Sequence[CalledFunction],
    editable: Sequence[CalledFunction],
    candidates: Candidates,
    saved: SavedValues,
    of_native: KeptValues,
) -> str:
    """Why nothing may be edited, or "".

    What an edit of any function that ran changes could get to one of the others, so one obstacle is enough.

    Args:
        called: the functions of the user that ran.
        editable: those that native does not call.
        candidates: those with a source.
        saved: what is restored after each run, saved before the run whose effects are there now.
        of_native: what native can read.
    """
    if sys.getprofile() is not None:
        return "another profiler runs"
    if not called:
        return "no Python function of yours ran, only compiled ones or those of libraries"
    for each in called:
        if (line := endless_loop(each)) is not None:
            return f"one could make the loop in line {line} of {in_words(each.code).rpartition(' ')[2]} endless"
    for each in editable:
        if effect := outside_effect(each):
            return effect
    for function, _ in candidates.functions:
        if name := changed_object(function.node, function.called, saved):
            return f"{in_words(function.code)} changes `{name}`, which cannot be saved and put back"
    if names := saved.changed_tensors:
        return f"the tensor `{names[0]}` is changed in place from call to call"
    if names := saved.changed_and_used(of_native.reached, of_native.first):
        return f"native uses `{names[0]}`, too, which is changed from call to call"
    return left_out(called, editable, candidates) if not candidates.functions else ""


def left_out(called: Sequence[CalledFunction], editable: Sequence[CalledFunction], candidates: Candidates) -> str:
    """Why some of the functions were not edited, or ""."""
    if by_native := [each for each in called if each not in editable]:
        return f"native calls {_names(by_native)}, too"
    if candidates.without_source:
        return f"the source of {_names(candidates.without_source)} is not at hand, or has changed"
    return ""


def _names(functions: Sequence[CalledFunction]) -> str:
    names = [in_words(each.code) for each in functions]
    more = len(names) - MAX_NAMES
    return join_words([*names[:MAX_NAMES], *([f"{more} more"] if more > 0 else [])])
