"""Compiled CPU kernels: which ones this machine has (:func:`available`), and which ones to use (:func:`choose`)."""

from manualgrad.cpu.instruction_set import Available, available, choose

__all__ = ["Available", "available", "choose"]
