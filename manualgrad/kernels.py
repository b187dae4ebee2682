"""Compiled CPU kernels: which of them this machine runs (:func:`available`), the choice (:func:`choose`), and the
folder that they are cached in (:func:`cache_folder`)."""

from manualgrad.cpu.instruction_set import Available, available, choose
from manualgrad.cpu.object_cache import cache_folder

__all__ = ["Available", "available", "cache_folder", "choose"]
