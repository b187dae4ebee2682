"""Digits of the bundled sample, and a record of the calls of a plan."""

from __future__ import annotations

import pytest

from manualgrad import data
from manualgrad.network.plan import Plan


@pytest.fixture(scope="session")
def dataset() -> data.Dataset:
    """The first 120 training images of the sample, and its test images."""
    return data.bundled_sample().limited(120)


@pytest.fixture
def plan_calls(monkeypatch) -> list[str]:
    """Names of the methods of Plan that ran."""
    calls: list[str] = []
    for name in ("forward", "backward"):
        original = getattr(Plan, name)

        def recorded(*arguments, original=original, name=name):
            calls.append(name)
            return original(*arguments)

        monkeypatch.setattr(Plan, name, recorded)
    return calls
