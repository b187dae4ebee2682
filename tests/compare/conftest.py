"""A dataset for trainings that take a second."""

from __future__ import annotations

from dataclasses import replace

import pytest

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
