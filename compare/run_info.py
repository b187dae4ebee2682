"""Conditions of a run: versions, machine, seeds, data, command and time."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import manualgrad
from compare.printable import printable
from manualgrad.doctor import machine

ROOT = Path(__file__).parents[1]

# Environment variables that change speed, memory or the order of sums. Variables that hold paths are left out.
VARIABLES = re.compile(r"(OMP|MKL|OPENBLAS|NUMBA|KMP|MALLOC|PYTORCH|CUBLAS)_(?!.*(DIR|PATH|HOME|FILE)).*")


@dataclass(frozen=True)
class RunInfo:
    """Conditions of one run."""

    command: str
    utc: str
    commit: str | None
    versions: dict[str, str]
    processor: str
    cores: int
    device: str
    threads: int
    allocator: str
    environment: dict[str, str]
    seeds: tuple[int, ...]
    dataset: str | None
    source: str | None

    def rows(self) -> list[tuple[str, str]]:
        """(name, value) of each condition that is known, as text."""
        data = ": ".join(text for text in (self.dataset, self.source) if text)
        rows = [
            ("command", self.command),
            ("date", self.utc),
            ("commit", self.commit or ""),
            ("versions", ", ".join(f"{name} {number}" for name, number in self.versions.items())),
            ("processor", f"{self.processor}, {_count(self.cores, 'core')}"),
            ("device", f"{self.device}, {_count(self.threads, 'thread')}"),
            ("allocator", self.allocator),
            ("environment", ", ".join(f"{name}={value}" for name, value in self.environment.items())),
            ("seeds", ", ".join(map(str, self.seeds))),
            ("data", data),
        ]
        return [(name, printable(value)) for name, value in rows if value]


def collect_run_info(
    command: str,
    *,
    seeds: Sequence[int] = (),
    dataset: str | None = None,
    source: str | None = None,
    device: torch.device | str = "cpu",
) -> RunInfo:
    """Collect the conditions of this process.

    Args:
        command: the command line as it was typed.
        seeds: seeds of all random draws in the run.
        dataset, source: ``Dataset.name`` and ``Dataset.source``, if the run used images.
        device: the device of the layers.
    """
    return RunInfo(
        command=command,
        utc=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC"),
        commit=_commit(),
        versions=_versions(),
        processor=machine.processor(),
        cores=machine.cores(),
        device=_device(torch.device(device)),
        threads=torch.get_num_threads(),
        allocator=_allocator(),
        environment={name: value for name, value in sorted(os.environ.items()) if VARIABLES.fullmatch(name)},
        seeds=tuple(seeds),
        dataset=dataset,
        source=source,
    )


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that compute."""
    versions = {"python": platform.python_version(), "manualgrad": manualgrad.__version__, "torch": torch.__version__}
    for name in ("torchvision", "numpy", "llvmlite", "triton"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def _commit() -> str | None:
    """Commit of this file's clone, with a note if files were changed; None outside a clone, or without git."""

    def git(*arguments: str) -> str:
        process = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
        return process.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != ROOT.resolve():
            return None  # the package is installed inside another repository
        return git("rev-parse", "HEAD") + (", with changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _device(device: torch.device) -> str:
    return f"cuda, {torch.cuda.get_device_name(device)}" if device.type == "cuda" else device.type


def _allocator() -> str:
    """Library that provides ``malloc``: a preloaded allocator, or else libc."""
    maps = Path("/proc/self/maps")  # Linux
    preloaded = re.search(r"(jemalloc|tcmalloc|mimalloc)", maps.read_text()) if maps.exists() else None
    return preloaded[1] if preloaded else " ".join(platform.libc_ver()).strip() or "the system's"
