"""Is a file the published one? Everything is read in pieces, so no file, however large, fills memory."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from pathlib import Path

from manualgrad.data.dataset import DataError

PIECE = 1 << 20


def check_md5(path: Path, expected: str) -> None:
    """Raise DataError, with both sums, unless the md5 of `path` is `expected`."""
    md5 = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            md5.update(piece)
    if md5.hexdigest() != expected:
        raise DataError(f"{path} is damaged: expected md5 {expected}, found {md5.hexdigest()}")


def check_unpacks_to(archive: Path, raw: Path) -> None:
    """Raise DataError unless the gzip file `archive` holds exactly the bytes of `raw`.

    It stops at the first piece that differs, so an archive that unpacks to terabytes costs no more than
    reading `raw` does.
    """
    try:
        with gzip.open(archive) as unpacked, raw.open("rb") as file:
            while True:
                expected = file.read(PIECE)
                # One byte when the file is at its end: enough to see that the archive goes on.
                found = unpacked.read(len(expected) or 1)
                if found != expected:
                    raise DataError(
                        f"{raw} is damaged: expected what {archive.name} beside it unpacks to, found another"
                    )
                if not expected:
                    return
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{archive} is damaged: expected a gzip file, found: {error}") from error
