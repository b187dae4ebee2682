"""Reading of IDX files, packed by gzip or not, after a check of header, size, and agreement of images and labels.

An IDX file is a four-byte magic number (0, 0, item type, number of dimensions), each dimension as a big-endian 32-bit
number, then the items. The file must have exactly the size that its header gives, so truncation and appended bytes
are detected. Not more than that is read, so a gzip file that unpacks to terabytes is no danger.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from manualgrad.data.dataset import DataError

SIDE = 28  # pixels, in every dataset related to MNIST
MAX_IMAGES = 1_000_000  # the largest dataset has 112,800; a sparse file can claim any number
UBYTE, INT = 0x08, 0x0C
ITEM_DTYPE: dict[int, np.dtype[Any]] = {UBYTE: np.dtype(np.uint8), INT: np.dtype(">i4")}


def magic(item_type: int, num_dimensions: int) -> bytes:
    """First four bytes of an IDX file, for example 00 00 08 03 for images."""
    return bytes([0, 0, item_type, num_dimensions])


def read_images(path: Path, md5: str | None = None) -> NDArray[np.uint8]:
    """Read a file of unsigned bytes, (N, 28, 28), with 1 to 1,000,000 images.

    Args:
        path: the file; it is unpacked if its name ends with ".gz".
        md5: MD5 of the unpacked file, if known.

    Raises:
        DataError: the file is damaged or has other contents.
        OSError: the file cannot be read.
    """
    return _read(path, UBYTE, (-1, SIDE, SIDE), md5)


def read_labels(
    path: Path, num_images: int, num_classes: int, *, qmnist: bool = False, md5: str | None = None
) -> NDArray[np.int64]:
    """Read the labels of ``num_images`` images, (N,): numbers from 0 to ``num_classes`` - 1.

    Args:
        path, md5: as for :func:`read_images`.
        qmnist: the file has eight 32-bit integers for each image, the class first, in place of an unsigned byte.

    Raises:
        DataError, OSError: as for :func:`read_images`.
    """
    items = _read(path, INT, (num_images, 8), md5) if qmnist else _read(path, UBYTE, (num_images,), md5)
    labels = items.reshape(num_images, -1)[:, 0].astype(np.int64)
    invalid = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(invalid):
        raise DataError(
            f"{path}: expected labels from 0 to {num_classes - 1}, "
            f"got {labels[invalid[0]]} for image {invalid[0]:,} (counted from 0)"
        )
    return labels


def _read(path: Path, item_type: int, expected_shape: tuple[int, ...], md5: str | None) -> NDArray[Any]:
    """Read an IDX file with the given type and shape, of which -1 stands for any number of images."""
    if path.exists() and not path.is_file():  # opening a pipe would wait for a process that writes to it
        raise DataError(f"{path}: expected a file, got a folder or another kind of entry")
    try:
        with cast(BinaryIO, gzip.open(path) if path.name.endswith(".gz") else path.open("rb")) as file:
            header = file.read(4 + 4 * len(expected_shape))
            shape = _shape(header, item_type, expected_shape, path)
            content = _read_items(file, len(header), prod(shape) * ITEM_DTYPE[item_type].itemsize, path)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is damaged: expected a gzip file, got the error: {error}") from error
    actual_md5 = hashlib.md5(header + content, usedforsecurity=False).hexdigest() if md5 else None
    if actual_md5 != md5:
        raise DataError(f"{path} is damaged: expected md5 {md5}, got {actual_md5}")
    return np.frombuffer(bytearray(content), ITEM_DTYPE[item_type]).reshape(shape)


def _shape(header: bytes, item_type: int, expected: tuple[int, ...], path: Path) -> tuple[int, ...]:
    """Return the dimensions that the header gives. Raises DataError unless they are as expected."""
    expected_magic = magic(item_type, len(expected))
    if header[:4] != expected_magic:
        hint = " (is it a gzip file that was not unpacked?)" if header[:2] == b"\x1f\x8b" else ""
        raise DataError(
            f"{path}: expected the magic number {expected_magic.hex(' ')}, "
            f"got {header[:4].hex(' ') or 'nothing'}{hint}"
        )
    if len(header) < 4 + 4 * len(expected):
        raise DataError(f"{path}: expected a header of {4 + 4 * len(expected)} bytes, got {len(header)}")
    shape = tuple(int(n) for n in np.frombuffer(header, dtype=">u4", offset=4))
    if len(shape) == 3 and shape[1:] != expected[1:]:
        raise DataError(f"{path}: expected images of {SIDE} x {SIDE} pixels, got {shape[1]} x {shape[2]}")
    if shape[1:] != expected[1:]:
        raise DataError(f"{path}: expected {expected[1]} numbers for each image, got {shape[1]}")
    if expected[0] == -1 and not 1 <= shape[0] <= MAX_IMAGES:
        limit = "at least 1 image" if shape[0] == 0 else f"at most {MAX_IMAGES:,} images"
        raise DataError(f"{path}: expected {limit}, got a header for {shape[0]:,} images")
    if expected[0] not in (-1, shape[0]):
        raise DataError(f"{path}: expected {expected[0]:,} labels, one for each image, got {shape[0]:,}")
    return shape


def _read_items(file: BinaryIO, header_bytes: int, item_bytes: int, path: Path) -> bytes:
    """Read the rest of the file. Raises DataError unless it has ``item_bytes`` bytes."""
    content = file.read(item_bytes)
    expected = f"its header gives {header_bytes + item_bytes:,} bytes"
    if len(content) < item_bytes:
        raise DataError(f"{path} is truncated: {expected}, got {header_bytes + len(content):,}")
    if file.read(1):
        raise DataError(f"{path} is too long: {expected}, got more")
    return content
