"""Compiled kernels: which of them this machine runs (:func:`available`), the choice (:func:`choose`), the folder that
the CPU's are cached in (:func:`cache_folder`), and what computes one call, and why (:func:`explain`)."""

from dataclasses import replace

from manualgrad.cpu import instruction_set
from manualgrad.cpu.instruction_set import Available, choose
from manualgrad.cpu.object_cache import cache_folder
from manualgrad.cuda import launch
from manualgrad.explanation import Explanation, Record, explain

__all__ = ["Available", "Explanation", "Record", "available", "cache_folder", "choose", "explain"]


def available() -> Available:
    """Return the kernels in use for float32 tensors on the CPU; compiles them if that is still to be done.

    ``cuda`` of the result says the same for tensors on CUDA. Formulas compute everything that kernels do not support:
    on the CPU other dtypes, strides, padding and groups; everywhere derivatives of derivatives, forward mode and
    ``torch.func``."""
    return replace(instruction_set.available(), cuda=launch.describe())
