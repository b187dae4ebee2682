"""Promise: functions that keep values from call to call are edited, and keep nothing that an edited run computed."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch

from compare import Case, compare
from compare.gradients.source_changes.kept_values import KeptValues
from compare.gradients.source_changes.saved_values import SavedValues
from tests.compare.source_changes import keeping
from tests.compare.source_changes.test_corrections import corrections_of, matrix, texts

FUNCTIONS = (
    keeping.InGlobalNames, keeping.InContainers, keeping.InAClass, keeping.InAnObject, keeping.InAClosure,
    keeping.InADefault,
)  # fmt: skip


def case_of(function, native=torch.square):
    return Case(function.__name__, function.apply, native, lambda: (matrix(),))


def kept():
    """Everything that the functions keep."""
    return copy.deepcopy(
        (
            keeping.NUM_CALLS, keeping.LAST is None, keeping.LOG, keeping.SHAPES, keeping.STATS, keeping.RECENT,
            keeping.COUNTS.tolist(), keeping.FACTORS, keeping.TABLE.tolist(),
            keeping.InAClass.count, keeping.InAClass.names, hasattr(keeping.InAClass, "last"),
            vars(keeping.COUNTER), keeping.InAClosure.backward.calls, keeping.note.__defaults__,
        )
    )  # fmt: skip


@pytest.fixture(autouse=True)
def without_calls():
    """The same values before each test."""
    saved = KeptValues(*vars(keeping).values())
    keeping.InAClosure.backward.calls = 0
    yield
    saved.restore_first()


@pytest.fixture
def leaks(monkeypatch):
    """Nothing is put back."""
    monkeypatch.setattr(SavedValues, "restore", lambda self: None)
    monkeypatch.setattr(KeptValues, "own_caches", lambda self, others: nullcontext())


def values_before_and_after(function):
    """The values that unedited runs leave, and those after a search besides."""
    before = []
    search = KeptValues.own_caches

    def noting(self, others):
        before.append(kept())
        return search(self, others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KeptValues, "own_caches", noting)
        corrections = corrections_of(case_of(function))
    return corrections, before[0], kept()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_search_leaves_nothing_behind(function):
    corrections, before, after = values_before_and_after(function)
    assert texts(corrections) == {("return 3 * g * x", "return 2 * g * x")}
    assert after == before


@pytest.mark.parametrize("function", FUNCTIONS)
def test_without_putting_back_each_search_would_leave_something(function, leaks):
    """Or the test above could not fail."""
    _, before, after = values_before_and_after(function)
    assert after != before


CACHES = [
    (keeping.CachesItsFactor, "FACTORS['square'] = 3.0", "FACTORS['square'] = 2.0"),
    (keeping.CachesWithALibrary, "return 3.0", "return 2.0"),
]


@pytest.mark.parametrize(("function", "old", "new"), CACHES)
def test_a_cached_value_is_edited_and_not_seen_by_the_next_run(function, old, new):
    report = str(compare(case_of(function), dtypes=(torch.float64,)))
    assert f"`{old}` should be `{new}`: with this change all comparisons are right" in report, report
    assert keeping.FACTORS in ({}, {"square": 3.0}) and keeping.cached_factor() == 3.0


@pytest.mark.parametrize(("function", "old", "new"), CACHES)
def test_a_leaking_cache_would_hide_the_right_edit(function, old, new, leaks):
    """Or the test above could not fail."""
    keeping.cached_factor.cache_clear()
    assert new not in str(compare(case_of(function), dtypes=(torch.float64,)))


def test_a_tensor_that_an_edit_writes_into_has_its_numbers_again():
    table, numbers = keeping.TABLE, keeping.TABLE.tolist()
    corrections_of(case_of(keeping.ReadsATable))
    assert keeping.TABLE is table and table.tolist() == numbers


def test_without_putting_back_the_tensor_would_have_other_numbers(leaks):
    numbers = keeping.TABLE.tolist()
    corrections_of(case_of(keeping.ReadsATable))
    changed = keeping.TABLE.tolist()
    keeping.TABLE.copy_(torch.tensor(numbers))
    assert changed != numbers


NOT_EDITED = [
    (keeping.WritesIntoATable, torch.square, "the tensor `TABLE` is changed in place from call to call"),
    (keeping.SharesWithNative, keeping.native_that_shares, "native uses `SHARED`, too, which is changed from call"),
]


@pytest.mark.parametrize(("function", "native", "reason"), NOT_EDITED)
def test_what_cannot_be_put_back_is_told(function, native, reason):
    report = str(compare(case_of(function, native), dtypes=(torch.float64,)))
    assert "should be" not in report
    assert f"No change of the source was tried, since {reason}" in report.splitlines()[-1]


def test_only_a_search_puts_values_back():
    """Calls of compare that edit nothing count like any others."""
    compare(Case("right", lambda x: (keeping.COUNTER.note("right"), x * x)[1], torch.square, lambda: (matrix(),)))
    assert keeping.COUNTER.count > 10
