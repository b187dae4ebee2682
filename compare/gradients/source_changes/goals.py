"""The right numbers of a wrong quantity, with which the runs of edited functions are compared."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from compare.gradients.diagnosis.mismatch import Mismatch
from compare.gradients.numbers import as_real
from compare.gradients.run_variant import RunResult

MIN_CHANGE = 1e-3  # a right element has lost at least this share of its error, or is within the tolerance
LARGEST = 1e300  # an error that is infinite, or NaN, counts as this
RELATIVE_ERROR = 1e-2  # of the largest number, where the wrong numbers are of another shape, or there are none


class Goal:
    """Right numbers of one wrong quantity. A run that comes near them is compared exactly afterwards.

    Attributes:
        quantity: name of what is wrong.
    """

    def __init__(self, target: Mismatch) -> None:
        self.quantity = target.quantity
        self._expected = expected = target.oracle
        self._wrong: Tensor | None = None  # where numbers were wrong; None where no element can be compared alone
        if expected is None:
            return
        if target.wrong is None or target.ours is None or target.ours.shape != expected.shape:
            self._needed = expected
            self._limit = RELATIVE_ERROR * expected.abs().max() if expected.numel() else torch.zeros(())
            return
        self._wrong = target.wrong.cpu()
        self._needed = expected[self._wrong]
        before = (target.ours.double().cpu()[self._wrong] - self._needed).abs()
        allowed = MIN_CHANGE * before.nan_to_num(posinf=math.inf, nan=math.inf)
        self._limit = allowed.clamp(max=LARGEST).clamp(min=2 * target.tolerance)
        self._is_finite = bool(self._needed.isfinite().all())

    def is_reached(self, result: RunResult) -> bool:
        """True if the numbers of a run are right."""
        got, expected = result.values.get(self.quantity), self._expected
        if result.error is not None or got is None or expected is None:
            return False
        got = as_real(got).double().cpu()
        if got.shape != expected.shape:
            return False
        now = got if self._wrong is None else got[self._wrong]
        is_near = (now - self._needed).abs() <= self._limit
        if self._wrong is None or self._is_finite:
            return bool(is_near.all())
        return bool((is_near | (now == self._needed) | (now.isnan() & self._needed.isnan())).all())
