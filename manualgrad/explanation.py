"""Records of what computed the parts of one call, and of the reason why nothing faster did.

``dispatch.py`` records what computes a formula, ``network/`` what runs a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Record:
    """One decision.

    Attributes:
        formula: name of the formula, or of what else was to be computed.
        arguments: dtype and shape of each tensor, and the other arguments.
        computed_by: "cpu kernel", "formula", or what else computed it.
        reason: the reason why nothing faster computed it; "" for a kernel.
        depth: number of formulas that this one is a part of.
    """

    formula: str
    arguments: str
    computed_by: str
    reason: str
    depth: int

    def __str__(self) -> str:
        because = f", since {self.reason}" if self.reason else ""
        return f"{'  ' * self.depth}{self.formula}({self.arguments}): {self.computed_by}{because}"


@dataclass(frozen=True)
class Explanation:
    """The result of a call, and what computed its parts, in order; ``print`` it."""

    result: Any
    records: list[Record] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n".join(map(str, self.records)) or "no formula that a kernel could compute was called"


records: list[Record] | None = None  # those of the call that explain() runs
_depth = 0


def explain(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Explanation:
    """Call ``function`` with these arguments and return its result with a record of each decision made in the call.

    A backward pass is part of the call if ``function`` runs it. Code that torch.compile compiled records its
    operators only. Calls of other threads at the same time are recorded too."""
    global records
    previous, own = records, list[Record]()
    records = own
    try:
        return Explanation(function(*args, **kwargs), own)
    finally:
        records = previous


def record(formula: str, computed_by: str, reason: str, *args: Any) -> None:
    """Add a record, if :func:`explain` is at work; see :class:`Record`."""
    if records is not None:
        records.append(Record(formula, ", ".join(map(_describe, args)), computed_by, reason, _depth))


@contextmanager
def indented() -> Iterator[None]:
    """Count the records inside the block as parts of the one before it."""
    global _depth
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1


def _describe(argument: Any) -> str:
    if isinstance(argument, Tensor):
        device = "" if argument.is_cpu else f" on {argument.device}"
        return f"{str(argument.dtype).removeprefix('torch.')} {tuple(argument.shape)}{device}"
    return repr(argument) if isinstance(argument, (int, float, str, tuple, type(None))) else type(argument).__name__
