"""torchvision's download, made all or nothing."""

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

# For each connection and each read, not for the whole download.
TIMEOUT_SECONDS = 5.0

# What a missing, slow or breaking network raises inside torchvision, which itself turns some of it, and an
# archive with the wrong md5, into RuntimeError. A full disk is none of these: it is an OSError,
# and stays one.
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
    """The network did not deliver. The message is the reason, one line."""


def fetch(source: Source, data_dir: Path) -> None:
    """Put the files of `source`, complete and checked, under `data_dir`, or leave it as it was.

    torchvision works in a temporary folder beside them, from which whole files are moved. Archives that lie
    in the raw folder already are copied there first: torchvision then unpacks them instead of downloading.
    Raises DownloadError where the network fails, DataError where a file is damaged, OSError where the disk
    fails.
    """
    raw = source.raw_folder(data_dir)
    # The nearest folder that exists: on the same disk, so moving is renaming, and failing leaves nothing.
    beside = next(folder for folder in (raw, *raw.parents) if folder.exists())
    with tempfile.TemporaryDirectory(prefix=".download-", dir=beside) as name:
        work = Path(name)
        work_raw = source.raw_folder(work)
        work_raw.mkdir(parents=True)
        for archive in archives_present(source, data_dir):
            check_md5(archive, source.archives[archive.name])
            shutil.copyfile(archive, work_raw / archive.name)

        _download(source, work)
        source.check(work)

        raw.mkdir(parents=True, exist_ok=True)
        for path in source.paths(work):
            # An archive of this one file stays beside it for `Source.check`; EMNIST's half gigabyte goes.
            for part in (path.with_name(path.name + ".gz"), path):
                if part.exists():
                    os.replace(part, raw / part.name)


def archives_present(source: Source, data_dir: Path) -> list[Path]:
    """Those of the archives of `source` that lie where torchvision would have put them."""
    raw = source.raw_folder(data_dir)
    return [raw / name for name in source.archives if (raw / name).is_file()]


def _download(source: Source, folder: Path) -> None:
    try:
        with _socket_timeout(TIMEOUT_SECONDS):
            source.open(folder, train=True, download=True)
            source.open(folder, train=False, download=True)
    except _NETWORK_ERRORS as error:
        # torchvision's message has a line for each mirror; the last says as much as all.
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise DownloadError(lines[-1]) from error


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """torchvision passes no time-out to urllib, so that a silent server would hold it for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
