"""Compiled CPU kernels: which of them this machine runs (:func:`available`), the choice (:func:`choose`), the folder
that they are cached in (:func:`cache_folder`), and what computes one call, and why (:func:`explain`)."""

from manualgrad.cpu.instruction_set import Available, available, choose
from manualgrad.cpu.object_cache import cache_folder
from manualgrad.explanation import Explanation, Record, explain

__all__ = ["Available", "Explanation", "Record", "available", "cache_folder", "choose", "explain"]
