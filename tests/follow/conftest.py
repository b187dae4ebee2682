"""Fixtures for the tests of the page: it is generated once, after few steps of training."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from compare import usual_mistakes
from manualgrad.data import Dataset, bundled_sample
from manualgrad.follow.command import make_page

STEPS = (0, 1, 3)
LIMIT = 3_000_000  # bytes of the page that the command writes


@dataclass(frozen=True)
class Page:
    """The page, and the numbers in it.

    Attributes:
        html: the whole text.
        data: its JSON.
        verdicts: words of ``compare`` that are on it.
    """

    html: str
    data: dict[str, Any]
    verdicts: dict[str, str]

    def quantities(self, state: int) -> dict[str, np.ndarray]:
        """Arrays of one state of training, by name."""
        return {name: decode(packed) for name, packed in self.data["states"][state]["q"].items()}


def decode(packed: dict[str, Any]) -> np.ndarray:
    """Array from the page's JSON, independent of ``encoding.py``."""
    content, dtype = (packed["u8"], "u1") if "u8" in packed else (packed["f32"], "<f4")
    return np.frombuffer(base64.b64decode(content), dtype).reshape(packed["shape"])


def read_page(html: str, verdicts: dict[str, str]) -> Page:
    """Read the JSON of a page."""
    script = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert script is not None
    return Page(html, json.loads(script[1]), verdicts)


@pytest.fixture(scope="session")
def dataset() -> Dataset:
    return bundled_sample()


@pytest.fixture(scope="session")
def page(dataset: Dataset) -> Page:
    """The page of test image 3, with the verdicts of ``compare``."""
    verdicts: dict[str, str] = {}

    def record_verdicts() -> dict[str, str]:
        verdicts.update(usual_mistakes.verdicts())
        return verdicts

    return read_page(make_page(dataset, 3, None, 0, record_verdicts, STEPS), verdicts)
