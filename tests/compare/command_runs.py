"""Result of a run of ``python -m compare``, and options of a fast one."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

FAST = ("--dtype", "float64")


class CommandResult(NamedTuple):
    """Exit code, both streams, and the folder of the report."""

    returncode: int
    stdout: str
    stderr: str
    out: Path
