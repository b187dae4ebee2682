"""Outcome of one capability check, and how an exception becomes an outcome."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from compare.capabilities.assertions import CheckFailed, NotApplicable, error_summary
from compare.capabilities.function_under_test import FunctionUnderTest
from compare.random_state import set_seed

WORKS, FAILS, NOT_APPLICABLE = "works", "fails", "not applicable"

# Warnings that transforms give about every function, right or wrong. Any other warning of a function is shown.
KNOWN_WARNINGS = (
    r"There is a performance drop because we have not yet implemented the batching rule",
    r"Using backward\(\) with create_graph=True will create a reference cycle",
    r"`torch.jit.script` is deprecated",  # given once, while torch.compile is loaded
)


@dataclass(frozen=True)
class Outcome:
    """Result of one check of one function.

    Attributes:
        verdict: "works", "fails" or "not applicable".
        reason: why it does not work; empty where it works.
        counts: work or memory, where the check measures it, as fractions of what all gradients together take: under
            "x alone" if x is the only input that requires a gradient, under "all but x" if all others do.
    """

    verdict: str
    reason: str = ""
    counts: Mapping[str, float] = field(default_factory=dict)


NO_NATIVE = Outcome(NOT_APPLICABLE, "there is no native function")


@dataclass(frozen=True)
class CapabilityResult:
    """One cell of the matrix: the outcomes of one capability for the case's own function and for its native one.

    The outcome of a native function that the case does not have is :data:`NO_NATIVE`.
    """

    case: str
    capability: str
    ours: Outcome
    native: Outcome

    @property
    def is_lacking(self) -> bool:
        """True if ours fails where native does not. Where there is no native function, nothing is lacking."""
        return self.ours.verdict == FAILS and self.native.verdict != FAILS and self.has_native

    @property
    def has_native(self) -> bool:
        """True if the case has a native function."""
        return self.native != NO_NATIVE

    def in_dtype(self, dtype: torch.dtype) -> CapabilityResult:
        """Name ``dtype`` in the reason of each outcome that is a failure."""
        word = str(dtype).removeprefix("torch.")
        ours, native = (
            replace(outcome, reason=f"{word}: {outcome.reason}") if outcome.verdict == FAILS else outcome
            for outcome in (self.ours, self.native)
        )
        return replace(self, ours=ours, native=native)


Check = Callable[[FunctionUnderTest, Any], Any]
"""``check(tested, native)`` runs one capability of one function.

``native`` is what the same check returned for the native function, or None if that failed or is itself being tested.
A returned mapping to numbers becomes the outcome's counts. A wrong answer raises :class:`CheckFailed`; any other
exception of the function is a failure too.
"""


def run_check(check: Check, tested: FunctionUnderTest, native: Any) -> tuple[Outcome, Any]:
    """Run one check; return its outcome and its result, or None where it has none.

    Exceptions become outcomes, except KeyboardInterrupt and others that are no Exception.
    """
    devices = [tested.device] if tested.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
        for message in KNOWN_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        set_seed(0)  # the same random numbers for a check, whichever ran before it
        try:
            if not tested.floating_names:
                raise NotApplicable("no input is a floating-point number")
            result = check(tested, native)
        except NotApplicable as reason:
            return Outcome(NOT_APPLICABLE, str(reason)), None
        except CheckFailed as failure:
            return Outcome(FAILS, str(failure), _counts(failure.result)), None
        except Exception as error:
            return Outcome(FAILS, error_summary(error)), None
    return Outcome(WORKS, counts=_counts(result)), result


def _counts(result: Any) -> Mapping[str, float]:
    if isinstance(result, Mapping) and all(isinstance(value, float) for value in result.values()):
        return dict(result)
    return {}
