"""How glibc keeps freed memory: its thresholds for this process, and what they cost.

glibc gives a freed buffer of some megabytes back to the system at once, and the next step of training gets it again
page by page, each page zeroed by the kernel. Half of a native training step can be that. ``tune`` tells glibc to keep
what was freed. Other C libraries have no such call, and then nothing is changed and the answer says so.
"""

from __future__ import annotations

import ctypes
import os
import platform
from dataclasses import dataclass

# From glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -2, -3, -4

NEVER_TRIM = -1  # glibc reads it as the largest number there is
TOP_PAD = 64 * 2**20
ENVIRONMENT = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_")


@dataclass(frozen=True)
class Tuning:
    """``tuned``: whether the thresholds are changed now. ``what``: which, or why not, for people."""

    tuned: bool
    what: str


def tune() -> Tuning:
    """Lets glibc keep all freed memory in this process, and take it from the heap however large it is.

    There is no way back within the process: the numbers could be set again, but glibc stops adapting its threshold
    to the sizes that it sees as soon as any of them was set. To see a process as shipped, start another.
    """
    library = glibc()
    if library is None:
        return Tuning(False, f"the C library here is {_library_name()}, not glibc: its allocator is left as it is")
    wanted = {
        "M_MMAP_MAX": (M_MMAP_MAX, 0),
        "M_TRIM_THRESHOLD": (M_TRIM_THRESHOLD, NEVER_TRIM),
        "M_TOP_PAD": (M_TOP_PAD, TOP_PAD),
    }
    refused = [name for name, (code, value) in wanted.items() if not library.mallopt(code, value)]
    if len(refused) == len(wanted):
        return Tuning(False, f"glibc refused all of {', '.join(refused)}")
    if refused:
        return Tuning(True, f"glibc refused {', '.join(refused)}; the others are set")
    settings = ", ".join(f"{name}={value}" for name, (_, value) in wanted.items())
    return Tuning(True, f"mallopt({settings}): freed memory stays in the process")


def trim() -> bool:
    """Gives all that is free back to the system, once; whether glibc was there to do so. Thresholds stay."""
    library = glibc()
    if library is None:
        return False
    library.malloc_trim(0)
    return True


def untouched_environment() -> dict[str, str]:
    """This process's environment without what would tune glibc in a process started with it."""
    environment = {name: value for name, value in os.environ.items() if name not in ENVIRONMENT}
    tunables = environment.pop("GLIBC_TUNABLES", "").split(":")
    kept = ":".join(one for one in tunables if one and not one.startswith("glibc.malloc."))
    return environment | ({"GLIBC_TUNABLES": kept} if kept else {})


def preloaded() -> str | None:
    """What LD_PRELOAD puts before the C library, perhaps another allocator, which ``tune`` would not reach."""
    return os.environ.get("LD_PRELOAD") or None


def page_faults() -> int | None:
    """Pages that the system gave to this process so far; None where it does not count them (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def glibc() -> ctypes.CDLL | None:
    """The C library of this process where it is glibc, else None."""
    if platform.libc_ver()[0] != "glibc":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None


def _library_name() -> str:
    return " ".join(platform.libc_ver()).strip() or f"that of {platform.system()}"
