"""Atomic download of a dataset by torchvision: all files, or none."""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError

from manualgrad.data.checksums import check_md5
from manualgrad.data.sources import Source

# Limit for each connection and each read, not for the whole download.
TIMEOUT_SECONDS = 5.0

# Errors that torchvision raises if the network is missing, slow or interrupted. torchvision itself converts some of
# them, and a wrong MD5 of an archive, to RuntimeError. A full disk gives an OSError that is none of these.
_NETWORK_ERRORS = (
    RuntimeError,
    URLError,
    TimeoutError,
    ConnectionError,
    socket.gaierror,
    ssl.SSLError,
    http.client.HTTPException,
)


class DownloadError(Exception):
    """The download failed because of the network. The message is the reason, in one line."""


def fetch(source: Source, data_dir: Path) -> None:
    """Download or unpack the files of `source`, check them, and move them to `data_dir`.

    torchvision works in a temporary folder on the same disk, from which complete files are moved. Archives that are
    already in the raw folder are copied to the temporary folder first, and torchvision unpacks them without a
    download. After an error `data_dir` is as it was.

    Raises:
        DownloadError: the network failed.
        DataError: a file is damaged.
        OSError: the disk failed.
    """
    raw = source.raw_folder(data_dir)
    # The nearest existing parent: on the same disk, so that moving is renaming, and no folder is left after an error.
    parent = next(folder for folder in (raw, *raw.parents) if folder.exists())
    with tempfile.TemporaryDirectory(prefix=".download-", dir=parent) as name:
        work = Path(name)
        work_raw = source.raw_folder(work)
        work_raw.mkdir(parents=True)
        for archive in archives_present(source, data_dir):
            check_md5(archive, source.archives[archive.name])
            shutil.copyfile(archive, work_raw / archive.name)

        _download(source, work)
        source.read(source.paths(work))  # for its checks

        raw.mkdir(parents=True, exist_ok=True)
        for path in source.paths(work):
            # The archive of a single file is kept for later checks. EMNIST's archive of half a gigabyte is not.
            for file in (path.with_name(path.name + ".gz"), path):
                if file.exists():
                    os.replace(file, raw / file.name)


def archives_present(source: Source, data_dir: Path) -> list[Path]:
    """Archives of `source` that exist in the folder to which torchvision downloads them."""
    raw = source.raw_folder(data_dir)
    return [raw / name for name in source.archives if (raw / name).is_file()]


def _download(source: Source, folder: Path) -> None:
    try:
        with _socket_timeout(TIMEOUT_SECONDS):
            source.download(folder)
    except _NETWORK_ERRORS as error:
        # torchvision's message has a line for each mirror; the last line gives the reason.
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise DownloadError(lines[-1]) from error


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """Set the default timeout of sockets. torchvision gives urllib no timeout and would wait forever for a server."""
    previous = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(previous)
