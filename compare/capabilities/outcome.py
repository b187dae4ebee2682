"""What comes of running one capability, and how an exception becomes an outcome."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from compare.capabilities.agreement import Fails, NotApplicable, first_line
from compare.capabilities.trial import Trial

WORKS, FAILS, NOT_APPLICABLE = "works", "fails", "not applicable"

# What transforms say of every function that they meet, right or wrong. Anything else a function says is shown.
KNOWN_WARNINGS = (
    r"There is a performance drop because we have not yet implemented the batching rule",
    r"Using backward\(\) with create_graph=True will create a reference cycle",
    r"`torch.jit.script` is deprecated",  # said once, while torch.compile is loaded
)


@dataclass(frozen=True)
class Outcome:
    """``verdict`` is "works", "fails" or "not applicable"; ``reason`` says why it does not work.

    ``counts``, where something was counted, is for each input the share that is left when it alone asks for its
    gradient: 0.45 is 45 % of what all of them together take.
    """

    verdict: str
    reason: str = ""
    counts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Capability:
    """One cell of the matrix: what came of running ``capability`` for the case's own function and for its native
    one."""

    case: str
    capability: str
    ours: Outcome
    native: Outcome

    @property
    def lacking(self) -> bool:
        """Whether ours fails where native does not."""
        return self.ours.verdict == FAILS and self.native.verdict != FAILS


Check = Callable[[Trial, Any], Any]
"""``check(trial, native)`` runs one capability of one function. ``native`` is what the same check returned for the
native function, None while that itself is on trial or where it failed. What the check returns is handed on in that
way; a mapping to numbers becomes the outcome's counts. A wrong answer raises :class:`Fails`; any exception of the
function's own is a failure too."""


def judge(check: Check, trial: Trial, native: Any) -> tuple[Outcome, Any]:
    """What came of it, and what the check found. Only KeyboardInterrupt and its like pass through."""
    devices = [trial.device] if trial.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
        for message in KNOWN_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        torch.manual_seed(0)  # the same random numbers for a cell, whichever ran before it
        try:
            if not trial.floating:
                raise NotApplicable("no input is a floating-point number")
            found = check(trial, native)
        except NotApplicable as why:
            return Outcome(NOT_APPLICABLE, str(why)), None
        except Fails as why:
            return Outcome(FAILS, str(why), _counts(why.found)), None
        except Exception as error:
            return Outcome(FAILS, first_line(error)), None
    return Outcome(WORKS, counts=_counts(found)), found


def _counts(found: Any) -> Mapping[str, float]:
    if isinstance(found, Mapping) and all(isinstance(value, float) for value in found.values()):
        return dict(found)
    return {}
