"""A dataset for trainings that take a second; a search of the source that raises fails its test."""

from __future__ import annotations

from dataclasses import replace

import pytest

from compare.gradients.source_changes import (
    expected_values,
    fitting_terms,
    missing_derivatives,
    source_findings,
    value_search,
)
from manualgrad import data
from manualgrad.data import Split


@pytest.fixture(scope="session")
def small_digits() -> data.Dataset:
    """Some images of the sample, cropped to the middle 14×14 pixels."""
    sample = data.bundled_sample()
    train, test = (
        Split(split.images[:n, :, 7:21, 7:21].contiguous(), split.labels[:n])
        for split, n in ((sample.train, 96), (sample.test, 100))
    )
    return replace(sample, train=train, test=test)


@pytest.fixture(autouse=True)
def search_does_not_raise(monkeypatch):
    """Fail where the search raises, which a comparison only tells."""
    raised, search = [], source_findings.search

    def watched(*args, **kwargs):
        try:
            return search(*args, **kwargs)
        except Exception as error:
            raised.append(error)
            raise

    monkeypatch.setattr(source_findings, "search", watched)
    yield
    assert not raised, raised


@pytest.fixture
def short_search(monkeypatch):
    """Search for changes of the source a short time, in tests of what is told without them."""
    for module, name, value in (
        (source_findings, "MAX_CALLS", 20_000),
        (source_findings, "MAX_CALLS_IF_NAMED", 20_000),
        (value_search, "MAX_TERMS_OF_ALL", 500),
        (expected_values, "MAX_RUNS", 50),
        (missing_derivatives, "MAX_RUNS", 50),
        (fitting_terms, "MAX_TERMS", 500),
    ):
        monkeypatch.setattr(module, name, value)
