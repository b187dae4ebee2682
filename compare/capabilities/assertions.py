"""Assertions that a check makes about tensors, and the two exceptions that end a check early."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# The same sums in another order differ by a few roundings (1e-16 in float64), more where terms cancel. A real fault
# is many digits above that. In float32 (6e-8) the rounding of a sum of K terms is about sqrt(K) roundings: 2e-6 for
# the largest sums of the cases, some 1000 terms, several of which follow one another in a network. The second number
# is for tensors that should be 0 while the others are not.
TOLERANCES = {torch.float64: (1e-9, 1e-13), torch.float32: (2e-5, 1e-6)}
MAX_REASON_LENGTH = 150


class CheckFailed(Exception):
    """A wrong answer of a function that ran. The message is the measured difference.

    ``result``: what the check had measured until then.
    """

    def __init__(self, reason: str, result: Any = None) -> None:
        super().__init__(reason)
        self.result = result


class NotApplicable(Exception):
    """A check that makes no sense for this function. The message says why."""


def assert_close(actual: Sequence[Tensor], expected: Sequence[Tensor], names: Sequence[str], where: str = "") -> None:
    """Assert that all tensors are equal in shape and, within rounding of the largest element, in value.

    NaN equals NaN.

    Raises:
        CheckFailed: they are not equal; the message names the first tensor that differs and by how much.
    """
    prefix = f"{where}: " if where else ""
    if len(actual) != len(expected):
        raise CheckFailed(f"{prefix}{len(actual)} tensors where {len(expected)} are expected")
    largest_of_all = max([1.0, *(max_abs(tensor) for tensor in expected)])
    for a, b, name in zip(actual, expected, names, strict=True):
        if a.shape != b.shape:
            raise CheckFailed(f"{prefix}{name} has the shape {tuple(a.shape)} and not {tuple(b.shape)}")
        rtol, atol = max(TOLERANCES.get(tensor.dtype, TOLERANCES[torch.float64]) for tensor in (a, b))
        a, b = a.detach().double(), b.detach().double()
        error = torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, (a - b).abs())
        allowed = rtol * max_abs(b) + atol * largest_of_all
        if not bool((error <= allowed).all()):
            worst = float(error.nan_to_num(nan=torch.inf).max())
            raise CheckFailed(f"{prefix}{name} is off by {worst:.3g}, where the largest element is {max_abs(b):.3g}")


def assert_bitwise_equal(
    actual: Sequence[Tensor], expected: Sequence[Tensor], names: Sequence[str], complaint: str
) -> None:
    """Assert that all tensors are equal to the bit; ``complaint`` follows the name of one that is not.

    Raises:
        CheckFailed: one differs.
    """
    for a, b, name in zip(actual, expected, names, strict=True):
        if not bool(((a == b) | (a.isnan() & b.isnan())).all() if a.is_floating_point() else torch.equal(a, b)):
            raise CheckFailed(f"{name} {complaint}")


def max_abs(tensor: Tensor) -> float:
    """Largest finite absolute value; 0 where there is none."""
    values = tensor.detach()[tensor.detach().isfinite()]
    return float(values.abs().max()) if values.numel() else 0.0


def error_summary(error: Exception) -> str:
    """Class name and first line of the message of ``error``, shortened to ``MAX_REASON_LENGTH`` characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return text if len(text) <= MAX_REASON_LENGTH else text[: MAX_REASON_LENGTH - 1] + "…"
