"""Files of results: a check of their folder, and atomic writes.

After an atomic write, a reader finds the old content or the new content, never a part of it.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

UNFINISHED_SUFFIX = ".unfinished"


def find_write_problem(folder: Path) -> str | None:
    """Make ``folder`` if needed, and return why no file can be written to it; None if one can.

    A command does this first, so that no work is lost later.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except FileExistsError:
        return "expected a folder, got a file"
    except OSError as error:
        return error.strerror or str(error)


def write_atomic(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` atomically, also with respect to a power failure.

    The content goes to a temporary file in the same folder, is flushed to the disk, and is then renamed to ``path``.

    Raises:
        OSError: the write failed. ``path`` is as it was, and the temporary file is removed.

    A process that is killed during the write leaves the temporary file, whose name ends with ".unfinished".
    :func:`remove_unfinished` deletes it.
    """
    temporary = path.with_name(path.name + UNFINISHED_SUFFIX)
    try:
        temporary.unlink(missing_ok=True)
        with temporary.open("xb") as file:  # a new file: not what a link or pipe of this name leads to
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:  # for a full disk, torch and Python leave out the name of the file
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)
    if not hasattr(os, "O_DIRECTORY"):  # Windows opens no folders
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)  # puts the new name on the disk as well
    finally:
        os.close(folder)


def remove_unfinished(folder: Path) -> None:
    """Delete the temporary files that killed processes left in ``folder``."""
    for path in folder.glob(f"*{UNFINISHED_SUFFIX}"):
        path.unlink(missing_ok=True)
