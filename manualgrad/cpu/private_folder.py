"""A folder that only this user can change, for files whose content is executed. Linux only.

Every check is made on an open descriptor, which is then used: a file that another user exchanges after the check is
not the one that is read.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from pathlib import Path

MAX_LINKS = 40  # symbolic links in a path, as in Linux


class NotPrivateError(Exception):
    """Another user can change the file or folder, or the file is not a regular one. The message says why."""


class PrivateFolder:
    """Context manager: the folder ``path``, which belongs to this user and which nobody else can write to.

    Missing folders are created with mode 700, whatever the umask is. Every folder above, and every symbolic link in
    the path, must belong to this user or to root; a folder above may be writable by others only if it has the sticky
    bit, as /tmp does. Otherwise others could put another folder in its place.

    Raises:
        NotPrivateError: another user can write to the folder, or can put another one in its place.
        OSError: the folder cannot be opened or created.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> PrivateFolder:
        self._descriptor = _open_folder(self.path)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def read(self, name: str, max_bytes: int) -> bytes:
        """Return the content of the file ``name``, or its first ``max_bytes`` bytes.

        Raises:
            NotPrivateError: not a regular file (a link, pipe or device), of another user, or writable by others.
            OSError: the file cannot be read.
        """
        try:
            # O_NONBLOCK: to open a pipe does not wait for its writer
            file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=self._descriptor)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise NotPrivateError(f"{self.path / name} is a symbolic link") from None
            raise
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode):
                raise NotPrivateError(f"{self.path / name} is not a regular file")
            _require_private(self.path / name, status, (os.geteuid(),))
            return os.read(file, min(status.st_size, max_bytes))
        finally:
            os.close(file)

    def write(self, name: str, content: bytes) -> None:
        """Write ``content`` to the file ``name``, with mode 600, atomically; replaces a file, link or pipe.

        Raises:
            OSError: the write failed. Nothing new is in the folder.
        """
        temporary = f"{name}.{secrets.token_hex(8)}.unfinished"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        descriptor = os.open(temporary, flags, 0o600, dir_fd=self._descriptor)
        try:
            with open(descriptor, "wb") as file:
                os.fchmod(descriptor, 0o600)  # the umask may have removed bits
                file.write(content)
            os.replace(temporary, name, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)
        except BaseException:
            os.unlink(temporary, dir_fd=self._descriptor)
            raise


def _open_folder(path: Path) -> int:
    """Return a descriptor of ``path``, from the root down, after a check of every folder and link on the way."""
    user, links = os.geteuid(), 0
    names = [*reversed(path.absolute().parts[1:])]
    folder, here = os.open("/", os.O_PATH), Path("/")
    try:
        while names:
            name = names.pop()
            try:
                child = _open_child(folder, name)
            except OSError as error:  # its own path is relative to the folder
                raise OSError(error.errno, os.strerror(error.errno or 0), str(here / name)) from error
            try:
                status, there = os.fstat(child), here / name
                if stat.S_ISLNK(status.st_mode):
                    _require_owner(there, status, (user, 0))
                    if (links := links + 1) > MAX_LINKS:
                        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
                    target = Path(os.readlink("", dir_fd=child))
                    names += reversed(target.parts[target.is_absolute() :])
                    if target.is_absolute():
                        folder, child, here = os.open("/", os.O_PATH), folder, Path("/")
                    continue
                if not stat.S_ISDIR(status.st_mode):
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(there))
                _require_private(there, status, (user, 0), sticky_suffices=True)
                folder, child, here = child, folder, there
            finally:
                os.close(child)
        _require_private(path, os.fstat(folder), (user,))
    except BaseException:
        os.close(folder)
        raise
    return folder


def _open_child(folder: int, name: str) -> int:
    """Return a descriptor of ``name`` in ``folder``, of a symbolic link itself; creates a folder if it is missing."""
    flags = os.O_PATH | os.O_NOFOLLOW
    try:
        return os.open(name, flags, dir_fd=folder)
    except FileNotFoundError:
        with contextlib.suppress(FileExistsError):  # another process of this user was faster
            os.mkdir(name, 0o700, dir_fd=folder)
            os.chmod(name, 0o700, dir_fd=folder)  # the umask may have removed bits
        return os.open(name, flags, dir_fd=folder)


def _require_private(
    path: Path, status: os.stat_result, owners: tuple[int, ...], *, sticky_suffices: bool = False
) -> None:
    """Raise NotPrivateError unless one of ``owners`` owns the file or folder, and nobody else can write to it."""
    _require_owner(path, status, owners)
    mode = stat.S_IMODE(status.st_mode)
    if mode & (stat.S_IWGRP | stat.S_IWOTH) and not (sticky_suffices and mode & stat.S_ISVTX):
        raise NotPrivateError(f"other users can write to {path} (mode {mode:o}; chmod go-w forbids it)")


def _require_owner(path: Path, status: os.stat_result, owners: tuple[int, ...]) -> None:
    if status.st_uid not in owners:
        raise NotPrivateError(f"{path} belongs to user {status.st_uid}, this is user {owners[0]}")
