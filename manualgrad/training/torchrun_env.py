"""Environment variables that torchrun sets for every process, checked before this process waits for another rank."""

from __future__ import annotations

import os

from manualgrad.training.cli_exit import usage_error

TORCHRUN_ENV = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def read_torchrun_env() -> tuple[int, int, int]:
    """Return rank, world size and local rank. Unless WORLD_SIZE is above 1 they are (0, 1, 0).

    Raises:
        CliExit: with exit code 2, a variable is missing, is no whole number, or is out of its range.
    """
    world_size = _read("WORLD_SIZE", 1) if os.environ.get("WORLD_SIZE") else 1
    if world_size == 1:
        return 0, 1, 0
    missing = [name for name in TORCHRUN_ENV if not os.environ.get(name)]
    if missing:
        usage_error(f"WORLD_SIZE is {world_size}, but {', '.join(missing)} is not set: {_ADVICE}")
    _read("MASTER_PORT", 1, 65535)
    return _read("RANK", 0, world_size - 1), world_size, _read("LOCAL_RANK", 0, world_size - 1)


_ADVICE = "start several processes with torchrun, or unset WORLD_SIZE for one process"


def _read(name: str, minimum: int, maximum: int | None = None) -> int:
    text = os.environ[name]
    try:
        value = int(text)
    except ValueError:
        value = None
    if value is None or value < minimum or (maximum is not None and value > maximum):
        limits = f"at least {minimum}" if maximum is None else f"from {minimum} to {maximum}"
        usage_error(f"{name} is {text!r}, expected a whole number {limits}: {_ADVICE}")
    return value
