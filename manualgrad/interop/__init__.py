"""Conversion of models between the layers of ``torch.nn`` and ours: see docs/any-model.md."""

from manualgrad.interop.from_torch import from_torch
from manualgrad.interop.report import Left, Replaced, Report
from manualgrad.interop.to_torch import to_torch

__all__ = ["Left", "Replaced", "Report", "from_torch", "to_torch"]
