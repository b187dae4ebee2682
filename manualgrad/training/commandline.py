"""Types for argparse, which say what was expected and what came."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable


def at_least(kind: type, least: float, most: float = math.inf) -> Callable[[str], float]:
    """An argparse type: a number of ``kind`` that is finite, not below ``least`` and not above ``most``."""
    wanted = f"a {'whole ' if kind is int else ''}number, at least {least}"
    if not math.isinf(most):
        wanted += f", at most {most}"

    def number(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not (least <= value <= most and math.isfinite(value)):
            raise argparse.ArgumentTypeError(f"expected {wanted}, got {text!r}")
        return value

    return number


def percent(text: str) -> float:
    """An argparse type: a percentage."""
    value = at_least(float, 0)(text)
    if not 1 < value <= 100:
        raise argparse.ArgumentTypeError(f"expected percent, such as 99.2, got {text!r}")
    return value
