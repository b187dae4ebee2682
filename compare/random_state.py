"""The global random state: seeded for some code, and left as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global random state for the body of a ``with`` statement, and restore it afterwards."""
    with torch.random.fork_rng(devices=random_devices()):
        set_seed(seed)
        yield


def set_seed(seed: int) -> None:
    """``torch.manual_seed``. Without a GPU it is faster: torch formats stack traces for absent devices."""
    if _has_accelerator():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


def random_devices() -> list[int]:
    """CUDA devices whose random states ``torch.manual_seed`` sets: those in use."""
    return list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []


@cache
def _has_accelerator() -> bool:
    return torch.accelerator.is_available()
