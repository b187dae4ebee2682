"""Score of the diagnosis on the unseen Functions.

``python -m tests.compare.gallery.unseen.score first_half`` prints the findings for each wrong Function, and two
judgements: is the mistake named, and is it located; then the seconds of processor time: of wrong Functions, how much
of it a Function without a mistake would not take (native in the place of ours), and of right ones. Other words than
those expected may be right too, so read the statements.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import ModuleType

from compare import Case, Comparison, compare
from tests.compare.gallery.unseen.corrections import CORRECTIONS
from tests.compare.gallery.unseen.operation import WrongFunction

# Findings of these kinds do not count as wrong names; a reader decides whether the change or the value is the name.
WITHOUT_NAME = {"unknown", "few elements", "change of the source", "wrong intermediate value"}


@dataclass(frozen=True)
class Judgement:
    """Verdict on the findings of one wrong Function.

    Attributes:
        named: "named", "unknown" (the diagnosis claims nothing) or "wrongly named".
        located: True if the report matches every expression of ``located``.
    """

    named: str
    located: bool


def modules(half: str) -> Iterator[ModuleType]:
    """Import the modules of a set: first_half, second_half, third_set, and so on."""
    package = importlib.import_module(f"{__package__}.{half}")
    for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda module: module.name):
        yield importlib.import_module(f"{package.__name__}.{module.name}")


def wrong_functions(half: str) -> list[WrongFunction]:
    """List the wrong Functions of a set."""
    return [wrong for module in modules(half) for wrong in module.WRONG]


def right_cases(half: str) -> list[Case]:
    """List the right cases of a set."""
    return [case for module in modules(half) for case in module.RIGHT]


def judge(wrong: WrongFunction, result: Comparison) -> Judgement:
    """Compare the findings with what a reviewer would accept."""
    statements = [f"{finding.statement}\n{finding.correction}" for finding in result.findings]
    report = "\n".join(f"{f.quantity}: {f.statement}\n{f.evidence}\n{f.correction}" for f in result.findings)
    if any(_matches(words, statement) for words in wrong.named_words for statement in statements):
        named = "named"
    elif {finding.kind for finding in result.findings} <= WITHOUT_NAME | set(wrong.kinds):
        named = "unknown"
    else:
        named = "wrongly named"
    return Judgement(named, bool(statements) and all(_matches(words, report) for words in wrong.located))


def corrected(wrong: WrongFunction, result: Comparison) -> tuple[Judgement, str]:
    """Judgement after a reader's corrections, and the reason of the correction."""
    judgement = judge(wrong, result)
    statements = [f"{finding.statement}\n{finding.correction}" for finding in result.findings]
    for correction in CORRECTIONS:
        if correction.applies(wrong.case.name, statements):
            named = correction.named or judgement.named
            located = judgement.located if correction.located is None else correction.located
            return Judgement(named, located), correction.reason
    return judgement, ""


def _matches(words: str, text: str) -> bool:
    return re.search(words, text, re.IGNORECASE) is not None


def _timed(case: Case) -> tuple[Comparison, float]:
    start = time.process_time()
    return compare(case), time.process_time() - start


def main(half: str) -> None:
    """Print all findings, then the sums."""
    counts: Counter[str] = Counter()
    kinds: dict[str, Counter[str]] = {}
    wrongs, rights = wrong_functions(half), right_cases(half)
    seconds: dict[str, list[float]] = {"wrong": [], "wrong, more": [], "right": []}
    compare(rights[0])  # the first call imports parts of PyTorch
    for wrong in wrongs:
        result, of_wrong = _timed(wrong.case)
        _, without_mistake = _timed(replace(wrong.case, ours=wrong.case.native))
        seconds["wrong"].append(of_wrong)
        seconds["wrong, more"].append(of_wrong - without_mistake)
        automatic, (judgement, reason) = judge(wrong, result), corrected(wrong, result)
        counts[f"automatic: {automatic.named}"] += 1
        counts["automatic: located"] += automatic.located
        counts[judgement.named] += 1
        counts["located"] += judgement.located
        counts["found wrong"] += bool(result.findings)
        for kind in {finding.kind for finding in result.findings}:
            kinds.setdefault(kind, Counter()).update([judgement.named])
        place = "located" if judgement.located else "not located"
        print(f"\n{wrong.case.name}: {judgement.named}, {place} ({seconds['wrong'][-1]:.1f} s)")
        if reason:
            print(f"  corrected from {automatic.named}, {'' if automatic.located else 'not '}located: {reason}")
        print(f"  is: {wrong.named}")
        for finding in result.findings:
            print(f"  {finding.quantity}: {finding.statement} [{finding.kind}]")
            print(*(f"      {line}" for line in (finding.evidence, finding.correction) if line), sep="\n")
    print()
    for case in rights:
        result, of_right = _timed(case)
        seconds["right"].append(of_right)
        if result.findings:
            counts["right ones accused"] += 1
            print(f"ACCUSED {case.name}: {result.findings}")
    print(f"\n{half}: {len(wrongs)} wrong, {len(rights)} right")
    print(f"  found wrong {counts['found wrong']}, right ones accused {counts['right ones accused']}")
    for key in ("named", "located", "unknown", "wrongly named"):
        print(f"  {key:15} {counts[key]:3}   before corrections {counts[f'automatic: {key}']:3}")
    for group, values in seconds.items():
        values.sort()
        places = (("median", len(values) // 2), ("90 %", len(values) * 9 // 10), ("worst", len(values) - 1))
        print(f"  seconds, {group}: " + ", ".join(f"{word} {values[n]:.1f}" for word, n in places))
    for kind, judgements in sorted(kinds.items()):
        print(f"  {kind:45} {dict(judgements)}")


if __name__ == "__main__":
    main(sys.argv[1])
