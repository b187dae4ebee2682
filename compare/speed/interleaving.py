"""Interleaved measurement: in each round every contender runs once, and results are medians of the rounds' ratios.

Other work on the machine slows a round as a whole; within a round both sides are slowed alike.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

Result = TypeVar("Result")


@dataclass(frozen=True)
class Spread:
    """Median, first quartile (``low``) and third quartile (``high``) over ``rounds`` values."""

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Compute the spread of at least one value."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0], 1)
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high, len(values))


def interleave(contenders: Mapping[str, Callable[[], Result]], rounds: int) -> dict[str, list[Result]]:
    """Call each contender once a round, alternately in the given order and in reverse; return all results."""
    results: dict[str, list[Result]] = {name: [] for name in contenders}
    order = list(contenders)
    for _ in range(rounds):
        for name in order:
            results[name].append(contenders[name]())
        order.reverse()
    return results


def ratios_by_round(ours: Sequence[float], native: Sequence[float]) -> Spread:
    """Spread of ours / native, computed within each round.

    Raises:
        ValueError: the numbers of rounds differ.
    """
    return Spread.of([a / b for a, b in zip(ours, native, strict=True)])


def fastest(seconds: Mapping[str, Sequence[float]]) -> str:
    """Name of the contender with the smallest median."""
    return min(seconds, key=lambda name: statistics.median(seconds[name]))
