"""Argument types for argparse. Their error messages state what was expected and what was given."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

from manualgrad.training.schema import printable


def bounded(kind: type[int] | type[float], minimum: float, maximum: float = math.inf) -> Callable[[str], float]:
    """Return an argparse type for a finite number of type ``kind`` from ``minimum`` to ``maximum``."""
    expected = f"a {'whole ' if kind is int else ''}number, at least {minimum}"
    if maximum != math.inf:
        expected += f", at most {maximum}"

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or value == math.inf or not minimum <= value <= maximum:
            raise argparse.ArgumentTypeError(f"expected {expected}, got {printable(repr(text))}")
        return value

    return parse


def path(text: str) -> Path:
    """Argparse type for a path. An empty one, such as that of an unset shell variable, is refused."""
    if not text:
        raise argparse.ArgumentTypeError("expected a path, got ''")
    return Path(text)


def percentage(text: str) -> float:
    """Argparse type for a percentage above 1, so that a fraction such as 0.992 is refused."""
    value = bounded(float, 0)(text)
    if not 1 < value <= 100:
        raise argparse.ArgumentTypeError(f"expected a percentage, such as 99.2, got {text!r}")
    return value
