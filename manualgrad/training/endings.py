"""How a run ends that does not end well: an exit code, and a message for people in place of a traceback."""

from __future__ import annotations

from typing import NoReturn

import torch

from manualgrad.training.checkpoints import CheckpointError
from manualgrad.training.nonfinite import NonFinite

FAILED, WRONG_USE = 1, 2


class Ended(Exception):
    """The run is over, with this exit ``code``. No message: another process has said it."""

    def __init__(self, code: int, message: str = "") -> None:
        super().__init__(code, message)
        self.code, self.message = code, message


def fail(message: object) -> NoReturn:
    """Says what is wrong with the command, and ends with exit code 2."""
    raise Ended(WRONG_USE, f"error: {message}")


def explain(error: Exception) -> Ended | None:
    """The ending that ``error`` stands for; None for an error of the program, whose traceback is wanted."""
    if isinstance(error, Ended):
        return error
    if isinstance(error, CheckpointError):
        return Ended(WRONG_USE, f"error: {error}")
    if isinstance(error, NonFinite):
        return Ended(
            FAILED, f"{error}: the steps are too large, try a smaller --learning-rate; no results were written"
        )
    if isinstance(error, OSError):
        return Ended(FAILED, f"{error.filename or 'a file'} could not be written or read: {error.strerror or error}")
    if _is_lack_of_memory(error):
        return Ended(FAILED, f"out of memory: try a smaller --batch-size ({str(error).splitlines()[0]})")
    return None


def _is_lack_of_memory(error: Exception) -> bool:
    """torch has its own class for CUDA's memory, and for that of the CPU only words; NumPy has MemoryError."""
    words = str(error) if isinstance(error, RuntimeError) else ""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in words
