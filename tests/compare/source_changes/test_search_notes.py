"""Promise: where no change of the source is told, the report says in one sentence what was not tried, and why."""

from __future__ import annotations

import sys
import textwrap

import pytest
import torch

from compare import Case, compare
from compare.gradients import section
from compare.gradients.source_changes import search as search_module
from compare.gradients.source_changes import source_findings
from compare.gradients.source_changes.search_result import AT_LIMIT
from tests.compare.source_changes import effects, mistakes
from tests.compare.source_changes.test_corrections import matrix
from tests.compare.source_changes.test_editing_is_safe import Counts, Halves, WrongSquare, compile_source

DTYPES = (torch.float64,)


def double(x):
    return 2 * x


def unsourced():
    scope = {"torch": torch, "__name__": "unsourced"}
    source = """
        class Unsourced(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return 2 * x
            @staticmethod
            def backward(ctx, g):
                return 3 * g
    """
    exec(compile_source(textwrap.dedent(source)), scope)
    return scope["Unsourced"].apply


def line_of(function, more=0):
    return function.__code__.co_firstlineno + more


REASONS = [
    (effects.SetsThreads.apply, torch.square, f"`backward` in line {line_of(effects.SetsThreads.backward)} of "
     "effects.py uses `set_num_threads`, and an edited run may do more than compute"),
    (Halves.apply, double, f"one could make the loop in line {line_of(Halves.backward, 3)} of "
     "test_editing_is_safe.py endless"),
    (effects.KeepsAnAttribute(), torch.square, f"`forward` in line {line_of(effects.KeepsAnAttribute.forward)} of "
     "effects.py changes `self`, which cannot be saved and put back"),
    (unsourced(), double, "the source of `backward` in line 6 of unsourced.py and `forward` in line 3 of "
     "unsourced.py is not at hand, or has changed"),
    (double, lambda x: 3 * double(x), "native calls "),
    (torch.cos, torch.sin, "no Python function of yours ran, only compiled ones"),
    (Counts.apply, double, "its results depend on earlier calls"),
]  # fmt: skip


@pytest.mark.parametrize(("function", "native", "reason"), REASONS)
def test_the_reason_is_the_last_line(function, native, reason):
    result = compare(Case("case", function, native, lambda: (matrix(),)), dtypes=DTYPES)
    assert result.findings and not any(finding.correction for finding in result.findings)
    *others, last = str(result).splitlines()
    assert last.startswith(f"  No change of the source was tried, since {reason}"), last
    assert not any("No change" in line for line in others)


def test_large_inputs_are_a_reason(monkeypatch):
    monkeypatch.setattr(search_module, "MAX_ELEMENTS", 10)
    result = compare(Case("case", WrongSquare.apply, torch.square, lambda: (matrix(),)), dtypes=DTYPES)
    assert result.search_note == "No change of the source was tried, since the inputs have more than 10 elements."


def test_another_profiler_is_a_reason():
    sys.setprofile(lambda *_: None)
    try:
        result = compare(Case("case", WrongSquare.apply, torch.square, lambda: (matrix(),)), dtypes=DTYPES)
    finally:
        sys.setprofile(None)
    assert result.search_note == "No change of the source was tried, since another profiler runs."


def test_the_limit_is_told(monkeypatch):
    monkeypatch.setattr("compare.gradients.source_changes.source_findings.MAX_CALLS_IF_NAMED", 100)
    monkeypatch.setattr("compare.gradients.source_changes.source_findings.MAX_CALLS", 100)
    case = Case("case", mistakes.TwoMistakes.apply, lambda a, b: a.sin() * b, lambda: (matrix(), matrix()))
    result = compare(case, dtypes=DTYPES)
    assert result.search_note == AT_LIMIT
    assert section.section([result]).parts[0].note == f"case: {AT_LIMIT}"


def test_with_a_correction_nothing_more_is_said():
    result = compare(Case("case", WrongSquare.apply, torch.square, lambda: (matrix(),)), dtypes=DTYPES)
    assert result.findings[0].correction and not result.search_note
    assert not section.section([result]).parts[0].note


def test_an_error_of_the_search_is_told_and_no_finding_is_lost(monkeypatch):
    def fails(*_):
        raise RuntimeError("a shape that nobody foresaw")

    monkeypatch.setattr(source_findings, "search", fails)
    result = compare(Case("case", mistakes.Tanh.apply, torch.tanh, lambda: (matrix(),)), dtypes=DTYPES)
    assert result.findings and result.search_note == source_findings.FAILED.format(
        "RuntimeError: a shape that nobody foresaw"
    )
