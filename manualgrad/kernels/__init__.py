"""Fast versions of formulas, each under its formula's name; the formula says what it computes."""

from manualgrad.kernels.machine import Available, available, choose

__all__ = ["Available", "available", "choose"]
