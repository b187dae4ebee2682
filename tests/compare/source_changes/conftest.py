"""A short search of edits, for tests of what is tried besides."""

from __future__ import annotations

import pytest

from compare.gradients.source_changes import source_findings


@pytest.fixture
def few_edits(monkeypatch):
    """Stop the search of edits early: terms and values are tried whatever it took."""
    monkeypatch.setattr(source_findings, "MAX_CALLS", 40_000)
    monkeypatch.setattr(source_findings, "MAX_CALLS_IF_NAMED", 40_000)
