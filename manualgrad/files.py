"""A file is written whole or not at all: beside its place, flushed to the disk, then renamed into it."""

from __future__ import annotations

import os
from pathlib import Path

UNFINISHED = ".unfinished"


def write_whole(path: Path, content: bytes) -> None:
    """``content`` in ``path``: whoever looks finds what was there before or all of the new, also after a power cut.

    Raises OSError, and then leaves ``path`` as it was and nothing beside it. Killed while it writes, it leaves a
    file whose name ends with ".unfinished"; :func:`clear_unfinished` removes those.
    """
    beside = path.with_name(path.name + UNFINISHED)
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:  # of a full disk, torch and Python do not say which file it was
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        beside.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the name, too, is on the disk now
    finally:
        os.close(folder)


def clear_unfinished(folder: Path) -> None:
    """Remove what killed writers left in ``folder``."""
    for path in folder.glob(f"*{UNFINISHED}"):
        path.unlink(missing_ok=True)
