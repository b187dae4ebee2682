"""What a function can do beside giving its gradient: every capability run, for ours and for native, never claimed."""

from __future__ import annotations

from compare.capabilities.examination import CAPABILITIES, QUICK, compare_capabilities, examine, how
from compare.capabilities.outcome import FAILS, NOT_APPLICABLE, WORKS, Capability, Outcome

__all__ = [
    "CAPABILITIES",
    "FAILS",
    "NOT_APPLICABLE",
    "QUICK",
    "WORKS",
    "Capability",
    "Outcome",
    "compare_capabilities",
    "examine",
    "how",
]
