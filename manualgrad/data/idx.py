"""Is an IDX file what its header says, and do images and labels fit each other?

An IDX file is a four-byte magic number (0, 0, the type of an item, the number of dimensions), each dimension
as a big-endian 32-bit number, then the items. torchvision believes the header; here the size of the file has
to agree with it to the byte, so that neither a cut nor an appended byte passes.
"""

from __future__ import annotations

from math import prod
from pathlib import Path

import numpy as np

from manualgrad.data.dataset import DataError

SIDE = 28  # pixels; every relative of MNIST keeps it
MOST = 1_000_000  # images; the largest relative has 112,800, and a file with a hole in it is of any size for nothing
UBYTE, INT = 0x08, 0x0C
ITEM = {UBYTE: np.dtype(np.uint8), INT: np.dtype(">i4")}


def magic(item: int, dimensions: int) -> bytes:
    """The first four bytes of an IDX file, e.g. 00 00 08 03 for images."""
    return bytes([0, 0, item, dimensions])


def check_pair(images: Path, labels: Path, classes: int) -> None:
    """Raise DataError unless both files are whole and every image has a label in 0..classes - 1.

    images: unsigned bytes, (N, 28, 28). labels: unsigned bytes, (N,), or as QMNIST has them, 32-bit numbers,
    (N, 8), of which the first is the class.
    """
    count, *size = _shape(images, magic(UBYTE, 3))
    if size != [SIDE, SIDE]:
        raise DataError(f"{images}: expected images of {SIDE} x {SIDE} pixels, found {size[0]} x {size[1]}")
    if count == 0:
        raise DataError(f"{images}: expected images, found a header that announces none")
    if count > MOST:
        raise DataError(f"{images}: expected at most {MOST:,} images, found a header that announces {count:,}")

    item, dimensions = (INT, 2) if labels.name.endswith("-idx2-int") else (UBYTE, 1)
    shape = _shape(labels, magic(item, dimensions))
    if shape[0] != count:
        raise DataError(
            f"{labels}: expected {count:,} labels, one for each image of {images.name}, found {shape[0]:,}"
        )
    if shape[1:] not in ((), (8,)):
        raise DataError(f"{labels}: expected 8 numbers for each image, found {shape[1]}")

    values = np.fromfile(labels, dtype=ITEM[item], offset=4 + 4 * dimensions).reshape(count, -1)[:, 0]
    wrong = np.flatnonzero((values < 0) | (values >= classes))
    if len(wrong):
        raise DataError(
            f"{labels}: expected labels from 0 to {classes - 1}, "
            f"found {values[wrong[0]]} for image {wrong[0]:,} (counted from 0)"
        )


def _shape(path: Path, expected: bytes) -> tuple[int, ...]:
    """The dimensions that the header of `path` gives, once magic number and file size agree with it."""
    dimensions = expected[3]
    header_bytes = 4 + 4 * dimensions
    if path.exists() and not path.is_file():  # to open a pipe is to wait for whoever writes to it
        raise DataError(f"{path}: expected a file, found something else")
    with path.open("rb") as file:
        header = file.read(header_bytes)
    if header[:4] != expected:
        hint = " (a gzip file under the name of its contents?)" if header[:2] == b"\x1f\x8b" else ""
        raise DataError(
            f"{path}: expected the magic number {expected.hex(' ')}, found {header[:4].hex(' ') or 'nothing'}{hint}"
        )
    if len(header) < header_bytes:
        raise DataError(f"{path}: expected a header of {header_bytes} bytes, found only {len(header)}")

    shape = tuple(int(n) for n in np.frombuffer(header, dtype=">u4", offset=4))
    promised = header_bytes + prod(shape) * ITEM[expected[2]].itemsize
    found = path.stat().st_size
    if found != promised:
        fault = "truncated" if found < promised else "too long"
        raise DataError(f"{path} is {fault}: expected {promised:,} bytes, as its header says, found {found:,}")
    return shape
