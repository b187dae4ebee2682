"""Contenders take turns, and what is reported is the median of the ratios of one round, not a ratio of medians.

Other work on the machine slows a round as a whole; within a round both sides meet the same.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

Result = TypeVar("Result")


@dataclass(frozen=True)
class Spread:
    """The median over ``rounds``, and the first and the third quartile."""

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0], 1)
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high, len(values))


def take_turns(contenders: Mapping[str, Callable[[], Result]], rounds: int) -> dict[str, list[Result]]:
    """Calls each contender once a round, in their order and then in reverse, and so on: what each returned."""
    results: dict[str, list[Result]] = {name: [] for name in contenders}
    order = list(contenders)
    for _ in range(rounds):
        for name in order:
            results[name].append(contenders[name]())
        order.reverse()
    return results


def ratio(ours: Sequence[float], native: Sequence[float]) -> Spread:
    """The spread of ours / native, round by round.

    Raises:
        ValueError: not as many rounds of one as of the other.
    """
    return Spread.of([a / b for a, b in zip(ours, native, strict=True)])


def fastest(seconds: Mapping[str, Sequence[float]]) -> str:
    """The name whose median is the smallest."""
    return min(seconds, key=lambda name: statistics.median(seconds[name]))
