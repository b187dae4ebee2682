"""Capability matrix: each capability is run for our function and for the native one."""

from __future__ import annotations

from compare.capabilities.outcome import FAILS, NOT_APPLICABLE, WORKS, CapabilityResult, Outcome
from compare.capabilities.runner import CAPABILITIES, FLOAT32, QUICK, compare_capabilities, describe, run_capabilities

__all__ = [
    "CAPABILITIES",
    "FAILS",
    "FLOAT32",
    "NOT_APPLICABLE",
    "QUICK",
    "WORKS",
    "CapabilityResult",
    "Outcome",
    "compare_capabilities",
    "describe",
    "run_capabilities",
]
