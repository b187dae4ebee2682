"""Environment variables that torchrun sets for every process, checked before this process waits for another rank."""

from __future__ import annotations

import os

from manualgrad.training.cli_exit import EXIT_USAGE, CliExit, usage_error

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


def require_device_for_each_process(local_rank: int, num_devices: int) -> None:
    """Check that each process of this machine has a CUDA device of its own.

    Raises:
        CliExit: with exit code 2, torchrun started more processes on this machine than it has devices. The first of
            them has the message, or the one without a device if torchrun did not say how many there are.
    """
    num_processes = _read("LOCAL_WORLD_SIZE", 1) if os.environ.get("LOCAL_WORLD_SIZE") else local_rank + 1
    if num_processes <= num_devices:
        return
    if local_rank and os.environ.get("LOCAL_WORLD_SIZE"):
        raise CliExit(EXIT_USAGE)
    usage_error(
        f"{num_processes} processes on this machine need as many CUDA devices, and PyTorch finds {num_devices}: "
        f"start torchrun with --nproc-per-node {num_devices}, or use --device cpu"
    )


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
