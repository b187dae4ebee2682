"""Under which conditions a report was made: versions, machine, seeds, data, command, time."""

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

ROOT = Path(__file__).parents[1]

# What changes speed, memory or the order of sums. Variables that hold paths are not among them.
VARIABLES = re.compile(r"(OMP|MKL|OPENBLAS|NUMBA|KMP|MALLOC|PYTORCH|CUBLAS)_(?!.*(DIR|PATH|HOME|FILE)).*")


@dataclass(frozen=True)
class Stamp:
    """The conditions of one run; ``rows()`` has them for people."""

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
        """(what, its value) of each that is known."""
        data = ": ".join(part for part in (self.dataset, self.source) if part)
        rows = [
            ("command", self.command),
            ("made", self.utc),
            ("commit", self.commit or ""),
            ("versions", ", ".join(f"{name} {number}" for name, number in self.versions.items())),
            ("processor", f"{self.processor}, {_count(self.cores, 'core')}"),
            ("device", f"{self.device}, {_count(self.threads, 'thread')}"),
            ("allocator", self.allocator),
            ("environment", ", ".join(f"{name}={value}" for name, value in self.environment.items())),
            ("seeds", ", ".join(map(str, self.seeds))),
            ("data", data),
        ]
        return [(what, value) for what, value in rows if value]


def make_stamp(
    command: str,
    *,
    seeds: Sequence[int] = (),
    dataset: str | None = None,
    source: str | None = None,
    device: torch.device | str = "cpu",
) -> Stamp:
    """The stamp of this process, now.

    Args:
        command: as it was typed.
        seeds: of every draw that the run made.
        dataset, source: ``Dataset.name`` and ``Dataset.source``, where images were used.
        device: where the layers ran.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    return Stamp(
        command=command,
        utc=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC"),
        commit=_commit(),
        versions=_versions(),
        processor=_processor(),
        cores=len(affinity(0)) if affinity else os.cpu_count() or 1,
        device=_device(torch.device(device)),
        threads=torch.get_num_threads(),
        allocator=_allocator(),
        environment={name: value for name, value in sorted(os.environ.items()) if VARIABLES.fullmatch(name)},
        seeds=tuple(seeds),
        dataset=dataset,
        source=source,
    )


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _versions() -> dict[str, str]:
    """Of what computes; a package that is not installed is left out."""
    found = {"python": platform.python_version(), "manualgrad": manualgrad.__version__, "torch": torch.__version__}
    for name in ("torchvision", "numpy", "llvmlite", "triton"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    """Of the clone that this file lies in, and whether it was changed since; None outside a clone, or without git."""

    def git(*arguments: str) -> str:
        run = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
        return run.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != ROOT.resolve():
            return None  # another repository, which the installed package happens to lie in
        return git("rev-parse", "HEAD") + (", with changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _processor() -> str:
    """Its name, and the instructions that PyTorch uses of it."""
    listed = Path("/proc/cpuinfo")  # Linux; platform.processor() is empty there
    names = re.findall(r"^model name\s*: (.*)$", listed.read_text(), re.MULTILINE) if listed.exists() else []
    return f"{(names or [platform.processor() or platform.machine()])[0]}, {torch.backends.cpu.get_cpu_capability()}"


def _device(device: torch.device) -> str:
    return f"cuda, {torch.cuda.get_device_name(device)}" if device.type == "cuda" else device.type


def _allocator() -> str:
    """The library that ``malloc`` is of: one that was loaded in its place, else libc."""
    maps = Path("/proc/self/maps")  # Linux
    loaded = re.search(r"(jemalloc|tcmalloc|mimalloc)", maps.read_text()) if maps.exists() else None
    return loaded[1] if loaded else " ".join(platform.libc_ver()).strip() or "the system's"
