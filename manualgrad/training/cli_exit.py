"""Exit codes of the command, and the errors that end it with one message in place of a traceback."""

from __future__ import annotations

from typing import NoReturn

import torch

from manualgrad.training.checkpoints import CheckpointError
from manualgrad.training.nonfinite import NonFiniteError

EXIT_FAILURE, EXIT_USAGE = 1, 2


class CliExit(Exception):
    """Request to end the command with exit ``code`` after printing ``message``.

    The message is empty if another rank prints it.
    """

    def __init__(self, code: int, message: str = "") -> None:
        super().__init__(code, message)
        self.code, self.message = code, message


def usage_error(message: object) -> NoReturn:
    """Raise CliExit with exit code 2 and a message about wrong options or unusable files."""
    raise CliExit(EXIT_USAGE, f"error: {message}")


def to_cli_exit(error: Exception) -> CliExit | None:
    """Convert ``error`` to the CliExit that reports it; None for a programming error, which keeps its traceback."""
    if isinstance(error, CliExit):
        return error
    if isinstance(error, CheckpointError):
        return CliExit(EXIT_USAGE, f"error: {error}")
    if isinstance(error, NonFiniteError):
        advice = "The steps are too large: try a smaller --learning-rate. No results were written"
        return CliExit(EXIT_FAILURE, f"{error}. {advice}")
    if isinstance(error, OSError):
        path, reason = error.filename or "a file", error.strerror or error
        return CliExit(EXIT_FAILURE, f"{path} could not be written or read: {reason}")
    if _is_out_of_memory(error):
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return CliExit(EXIT_FAILURE, f"out of memory: try a smaller --batch-size or network ({reason})")
    return None


def _is_out_of_memory(error: Exception) -> bool:
    """Return True for MemoryError (NumPy), torch.OutOfMemoryError (CUDA), and the RuntimeError of torch's CPU
    allocator, which has no class of its own."""
    message = str(error) if isinstance(error, RuntimeError) else ""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in message
