"""The same change in several steps of a tape: in two terms of a formula, in all steps of a loop."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from compare.gradients.diagnosis.tape import StepKey
from compare.gradients.diagnosis.tape_changes import Change

MAX_MEMBERS = 40  # steps with the same change, all pairs of which are tried
CALL = re.compile(r" \(call \d+ there\)$")


@dataclass
class RepeatedChanges:
    """Changes of one step that alone do not explain a gradient, those of the same words together.

    Attributes:
        groups: by kind and words, for each step the change and by how much it changes one element of the gradient;
            NaN if that is unknown.
    """

    groups: dict[tuple[str, str], dict[StepKey, tuple[Change, float]]] = field(default_factory=dict)

    def add(self, change: Change, difference: float) -> None:
        """Add a change of one step."""
        if change.key is not None:
            words = change.words.removeprefix(f"in the derivative of {change.key[0]}, ")
            self.groups.setdefault((change.kind, words), {}).setdefault(change.key, (change, difference))

    def combinations(self, target: float, limit: float) -> Iterator[Change]:
        """Changes of two steps or of all that may change the element by ``target``, up to ``limit``."""
        later = []
        for group in self.groups.values():
            members = list(group.values())
            if not 2 <= len(members) <= MAX_MEMBERS or not any(difference for _, difference in members):
                continue
            places = {CALL.sub("", change.key[0]) for change, _ in members if change.key}
            everywhere = _joined([change for change, _ in members], "all" if len(members) > 2 else "both")
            if abs(sum(difference for _, difference in members) - target) <= limit:
                yield everywhere
            elif len(places) == 1:  # changes of the steps of a loop act on each other, those of several terms do not
                later.append(everywhere)
            for (a, first), (b, second) in itertools.combinations(members, 2):
                if len(members) > 2 and first and second and abs(first + second - target) <= limit:
                    yield _joined([a, b], "both")
        yield from later


def _joined(changes: list[Change], quantifier: str) -> Change:
    """One change of several steps."""
    first = changes[0]
    where = f"in {quantifier} {len(changes)} places" if quantifier == "all" else "in two places"
    words = CALL.sub("", first.key[0]) if first.key else ""
    said = first.words.removeprefix(f"in the derivative of {first.key[0] if first.key else ''}, ")
    others = [CALL.sub("", change.key[0]) for change in changes[1:] if change.key]
    also = "".join(f" and of {other}" for other in dict.fromkeys(others) if other != words)
    return replace(first, words=f"in the derivative of {words}{also}, {where}: {said}", also=tuple(changes[1:]))
