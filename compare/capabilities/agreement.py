"""Whether two lists of tensors are the same but for rounding, and the two ways in which a check ends early."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# Two ways to the same sums, in another order, are a few roundings of float64 (1e-16) apart, more where terms cancel.
# The smallest fault that is worth the name is many digits above. The second number is for tensors that ought to be 0
# beside others that are not.
RELATIVE, ABSOLUTE = 1e-9, 1e-13
LONGEST_REASON = 150


class Fails(Exception):
    """The function ran and gave a wrong answer; the message is the measured difference. ``found`` is kept with it."""

    def __init__(self, reason: str, found: Any = None) -> None:
        super().__init__(reason)
        self.found = found


class NotApplicable(Exception):
    """The question makes no sense for this function; the message says why."""


def must_agree(found: Sequence[Tensor], expected: Sequence[Tensor], names: Sequence[str], where: str = "") -> None:
    """That all are equal in shape and, within rounding of the largest element, in value; NaN equals NaN.

    Raises:
        Fails: they are not; the message names the first that differs and by how much.
    """
    before = f"{where}: " if where else ""
    if len(found) != len(expected):
        raise Fails(f"{before}{len(found)} tensors where {len(expected)} are expected")
    everything = max([1.0, *(largest(tensor) for tensor in expected)])
    for a, b, name in zip(found, expected, names, strict=True):
        if a.shape != b.shape:
            raise Fails(f"{before}{name} has the shape {tuple(a.shape)} and not {tuple(b.shape)}")
        a, b = a.detach().double(), b.detach().double()
        error = torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, (a - b).abs())
        allowed = RELATIVE * largest(b) + ABSOLUTE * everything
        if not bool((error <= allowed).all()):
            worst = float(error.nan_to_num(nan=torch.inf).max())
            raise Fails(f"{before}{name} is off by {worst:.3g}, where the largest element is {largest(b):.3g}")


def must_be_the_same(found: Sequence[Tensor], expected: Sequence[Tensor], names: Sequence[str], what: str) -> None:
    """That all are equal to the bit; ``what`` ends the message where one is not.

    Raises:
        Fails: one differs.
    """
    for a, b, name in zip(found, expected, names, strict=True):
        if not bool(((a == b) | (a.isnan() & b.isnan())).all() if a.is_floating_point() else torch.equal(a, b)):
            raise Fails(f"{name} {what}")


def largest(tensor: Tensor) -> float:
    """The largest finite absolute value; 0 where there is none."""
    values = tensor.detach()[tensor.detach().isfinite()]
    return float(values.abs().max()) if values.numel() else 0.0


def first_line(error: Exception) -> str:
    """The exception's name and the first line that it says, cut where it is very long."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return text if len(text) <= LONGEST_REASON else text[: LONGEST_REASON - 1] + "…"
