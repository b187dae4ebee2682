"""The output folder of a run: created, checked before the first step, and locked against a second run."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from manualgrad.files import find_write_problem, remove_unfinished
from manualgrad.training.cli_exit import EXIT_USAGE, to_cli_exit, usage_error
from manualgrad.training.distributed import DistributedContext
from manualgrad.training.metrics_logger import METRICS_FILE
from manualgrad.training.schema import printable
from manualgrad.training.streams import print_error

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

RESULT_FILES = (
    "weights.pt",
    "metrics.json",
    METRICS_FILE,
    "curves.png",
    "confusion.png",
    "kernels.png",
    "mistakes.png",
)
CHECKPOINTS = "checkpoints"
LOCK = ".lock"


def make_output_folder(path: Path) -> None:
    """Create the output folder if needed, and check that all results can be written to it.

    A run does this first, so that no work is lost later. Raises CliExit with exit code 2.
    """
    if problem := find_write_problem(path):
        usage_error(f"--out {path} cannot be written to: {problem}")
    for name in RESULT_FILES:
        if (path / name).is_dir():
            usage_error(f"--out {path} contains a folder named {name}: expected a file or nothing of that name")
    if (path / CHECKPOINTS).exists() and not (path / CHECKPOINTS).is_dir():
        usage_error(f"--out {path} contains a file named {CHECKPOINTS}: expected a folder or nothing of that name")


@contextmanager
def output_folder(path: Path, distributed: DistributedContext) -> Iterator[None]:
    """Create, check and lock the output folder on rank 0, and release it at the end. Raises CliExit.

    A run that is refused, with exit code 2, removes the folders that it made, if they are empty.
    """
    lock = FolderLock(path)
    # os.path.exists, since Path.exists raises OSError for a name that is too long
    missing = [folder for folder in (path, *path.parents) if not os.path.exists(folder)]

    def take() -> None:
        make_output_folder(path)
        lock.acquire()
        remove_unfinished(path)

    try:
        distributed.run_on_rank0(take)
        yield
    except Exception as error:
        lock.release()
        cli_exit = to_cli_exit(error)
        if cli_exit is not None and cli_exit.code == EXIT_USAGE:
            remove_empty(missing)
        raise
    finally:
        lock.release()


def remove_empty(folders: list[Path]) -> None:
    """Remove ``folders``, each of which is in the next one, up to the first that is not empty."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


class FolderLock:
    """Lock of an output folder, held by one process at a time.

    The lock belongs to an open file, so the system releases it when the process ends, even by SIGKILL. The file names
    the process, for the message that a second run prints. Without file locks (Windows, some network disks), a warning
    says that nothing prevents a second run.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._path = folder, folder / LOCK
        self._file: IO[str] | None = None

    def acquire(self) -> None:
        """Take the lock. If another process has it, raise CliExit with exit code 2 and the number of that process."""
        if fcntl is None:
            print_error(f"warning: this system has no file locks: start no second run with --out {self._folder}")
            return
        while self._file is None:
            file = self._path.open("a+", encoding="utf-8")
            try:
                self._lock(file)
                if self._is_current(file):
                    self._file = file
            finally:
                if self._file is None:
                    file.close()
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}")
        self._file.flush()

    def release(self) -> None:
        """Remove the file, then release the lock. Does nothing if this process does not hold it."""
        if self._file is not None:
            self._path.unlink(missing_ok=True)
            self._file.close()
            self._file = None

    def _lock(self, file: IO[str]) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = printable(file.read(100)) or "another process"
            usage_error(f"--out {self._folder} is in use by {holder}: wait until it ends, or choose another --out")
        except OSError as error:
            print_error(
                f"warning: {self._path} cannot be locked ({error.strerror}): "
                f"start no second run with --out {self._folder}"
            )

    def _is_current(self, file: IO[str]) -> bool:
        """Return False if a run that just ended removed the file: a lock of it would keep nobody out."""
        try:
            return os.path.samestat(os.fstat(file.fileno()), self._path.stat())
        except FileNotFoundError:
            return False
