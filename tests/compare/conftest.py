"""A dataset for trainings that take a second; a search of the source that raises fails its test."""

from __future__ import annotations

from dataclasses import replace

import pytest

from compare.gradients.source_changes import source_findings
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
