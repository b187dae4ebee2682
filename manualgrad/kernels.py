"""Compiled CPU kernels: which of them this machine runs (:func:`available`), and the choice (:func:`choose`)."""

from manualgrad.cpu.instruction_set import Available, available, choose

__all__ = ["Available", "available", "choose"]
