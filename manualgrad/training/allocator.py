"""Settings of glibc's memory allocator, and the page faults that they avoid.

By default glibc returns a freed buffer of some megabytes to the system at once. The next training step then gets the
memory again page by page, and the kernel zeroes each page. This can be half of the time of a native training step.
:func:`tune` makes glibc keep freed memory. Other C libraries have no such setting: :func:`tune` then changes nothing
and says so in its result.
"""

from __future__ import annotations

import ctypes
import os
import platform
from dataclasses import dataclass

# From glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -2, -3, -4

NEVER_TRIM = -1  # glibc reads it as the largest unsigned number
TOP_PAD_BYTES = 64 * 2**20
MALLOC_ENV = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_")


@dataclass(frozen=True)
class Tuning:
    """Result of :func:`tune`.

    Attributes:
        tuned: True if a setting was changed.
        description: the settings, or the reason why none was changed, as one line for a person.
    """

    tuned: bool
    description: str


def tune() -> Tuning:
    """Make glibc keep all freed memory in this process, and serve allocations of every size from the heap.

    This cannot be undone within the process. The settings could be set again, but glibc stops adapting its mmap
    threshold as soon as one of them was set. Start another process to measure the defaults.
    """
    library = glibc()
    if library is None:
        return Tuning(False, f"the C library is {_library_name()}, not glibc: its allocator is not tuned")
    settings = {
        "M_MMAP_MAX": (M_MMAP_MAX, 0),
        "M_TRIM_THRESHOLD": (M_TRIM_THRESHOLD, NEVER_TRIM),
        "M_TOP_PAD": (M_TOP_PAD, TOP_PAD_BYTES),
    }
    refused = [name for name, (option, value) in settings.items() if not library.mallopt(option, value)]
    if len(refused) == len(settings):
        return Tuning(False, f"glibc refused all of {', '.join(refused)}")
    if refused:
        return Tuning(True, f"glibc refused {', '.join(refused)}; the others are set")
    values = ", ".join(f"{name}={value}" for name, (_, value) in settings.items())
    return Tuning(True, f"mallopt({values}): freed memory stays in the process")


def trim() -> bool:
    """Return all free memory to the system, once, and leave the settings alone. Return True if glibc did it."""
    library = glibc()
    if library is None:
        return False
    library.malloc_trim(0)
    return True


def env_without_malloc_tuning() -> dict[str, str]:
    """Environment of this process without the variables that tune glibc's allocator, for a subprocess."""
    environment = {name: value for name, value in os.environ.items() if name not in MALLOC_ENV}
    tunables = environment.pop("GLIBC_TUNABLES", "").split(":")
    kept = ":".join(tunable for tunable in tunables if tunable and not tunable.startswith("glibc.malloc."))
    return environment | ({"GLIBC_TUNABLES": kept} if kept else {})


def ld_preload() -> str | None:
    """Value of LD_PRELOAD, which may load another allocator that :func:`tune` does not reach; None if unset."""
    return os.environ.get("LD_PRELOAD") or None


def page_faults() -> int | None:
    """Number of minor page faults of this process so far; None if the system does not count them (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def glibc() -> ctypes.CDLL | None:
    """The C library of this process if it is glibc, otherwise None."""
    if platform.libc_ver()[0] != "glibc":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None


def _library_name() -> str:
    return " ".join(platform.libc_ver()).strip() or f"that of {platform.system()}"
