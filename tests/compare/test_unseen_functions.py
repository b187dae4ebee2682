"""Promise: mistakes in Functions that the diagnosis was not made for are named and located; no right one is accused.

By default the first mistake and the third right Function of each file of ``gallery/unseen/second_half`` are tested,
and the third mistake of each file of ``first_half``. The others are slow: ``pytest -m slow``.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest

from compare import Case, compare
from tests.compare.gallery.unseen.operation import WrongFunction
from tests.compare.gallery.unseen.score import corrected, modules, right_cases, wrong_functions

HALVES = ("first_half", "second_half")
MODULES = [module for half in HALVES for module in modules(half)]

# Mistakes that the findings do not name, and mistakes of which they do not say which elements are wrong.
NOT_NAMED: set[str] = {
    "logsumexp of rows",
    "running mean",
    "tanh",
    "two largest of each row",
}
NOT_LOCATED: set[str] = {
    "reflected borders",
    "two largest of each row",
}


def parameters(attribute: str, is_quick: Callable[[ModuleType, int], bool]) -> list[object]:
    """List ``WRONG`` or ``RIGHT`` of all modules; those for which ``is_quick`` is False are slow."""
    listed = []
    for module in MODULES:
        for index, value in enumerate(getattr(module, attribute)):
            case = value.case if isinstance(value, WrongFunction) else value
            marks = () if is_quick(module, index) else pytest.mark.slow
            listed.append(pytest.param(value, marks=marks, id=case.name))
    return listed


@pytest.mark.parametrize(
    "wrong", parameters("WRONG", lambda module, index: index == (0 if "second" in module.__name__ else 2))
)
def test_a_mistake_is_named_and_located(wrong: WrongFunction):
    result = compare(wrong.case)
    judgement, _ = corrected(wrong, result)
    assert result.findings, f"not found: {wrong.named}"
    assert (judgement.named == "named") == (wrong.case.name not in NOT_NAMED), f"{wrong.named}\n{result}"
    assert judgement.located == (wrong.case.name not in NOT_LOCATED), f"{wrong.named}\n{result}"


@pytest.mark.parametrize(
    "case", parameters("RIGHT", lambda module, index: index == 2 and "second" in module.__name__)
)
def test_no_right_function_is_accused(case: Case):
    assert not compare(case).findings


def test_the_halves_have_different_functions():
    names = [wrong.case.name for half in HALVES for wrong in wrong_functions(half)]
    assert len(set(names)) == len(names) >= 66
    assert names == [case.name for half in HALVES for case in right_cases(half)]
    assert set(names) >= NOT_NAMED | NOT_LOCATED
