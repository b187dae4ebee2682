"""The dataset of the tests of checkpoints."""

from __future__ import annotations

import pytest

from manualgrad import data


@pytest.fixture(scope="module")
def dataset() -> data.Dataset:
    return data.bundled_sample().limited(40)
