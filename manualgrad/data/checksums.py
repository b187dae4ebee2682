"""Comparison of files with published checksums and archives. Files are read in chunks, so memory use is constant."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from pathlib import Path

from manualgrad.data.dataset import DataError

CHUNK_BYTES = 1 << 20


def check_md5(path: Path, expected: str) -> None:
    """Raise DataError, with both sums, unless the MD5 of `path` is `expected`."""
    md5 = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            md5.update(chunk)
    if md5.hexdigest() != expected:
        raise DataError(f"{path} is damaged: expected md5 {expected}, got {md5.hexdigest()}")


def check_unpacks_to(archive: Path, raw: Path) -> None:
    """Raise DataError unless the gzip file `archive` unpacks to exactly the bytes of `raw`.

    The comparison stops at the first chunk that differs. An archive that unpacks to terabytes therefore takes no
    longer than reading `raw`.
    """
    try:
        with gzip.open(archive) as unpacked, raw.open("rb") as file:
            while True:
                expected = file.read(CHUNK_BYTES)
                # At the end of the file, one more byte shows whether the archive continues.
                chunk = unpacked.read(len(expected) or 1)
                if chunk != expected:
                    raise DataError(
                        f"{raw} is damaged: expected the content of {archive.name} in the same folder, "
                        f"got other content"
                    )
                if not expected:
                    return
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{archive} is damaged: expected a gzip file, got the error: {error}") from error
