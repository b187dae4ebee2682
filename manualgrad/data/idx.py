"""Validation of IDX files: header, size, and the agreement of images and labels.

An IDX file is a four-byte magic number (0, 0, item type, number of dimensions), each dimension as a big-endian 32-bit
number, then the items. torchvision trusts the header. This module also requires that the file has exactly the size
that the header gives, so that truncation and appended bytes are detected.
"""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from manualgrad.data.dataset import DataError

SIDE = 28  # pixels, in every dataset related to MNIST
MAX_IMAGES = 1_000_000  # the largest dataset has 112,800; a sparse file can claim any number
UBYTE, INT = 0x08, 0x0C
ITEM_DTYPE: dict[int, np.dtype[Any]] = {UBYTE: np.dtype(np.uint8), INT: np.dtype(">i4")}


def magic(item_type: int, num_dimensions: int) -> bytes:
    """First four bytes of an IDX file, for example 00 00 08 03 for images."""
    return bytes([0, 0, item_type, num_dimensions])


def check_pair(images: Path, labels: Path, num_classes: int) -> None:
    """Raise DataError unless both files are complete and each image has a label from 0 to num_classes - 1.

    Args:
        images: file of unsigned bytes, (N, 28, 28).
        labels: file of unsigned bytes, (N,), or of 32-bit integers, (N, 8), with the class first (QMNIST).
        num_classes: number of classes.
    """
    num_images, height, width = _read_shape(images, magic(UBYTE, 3))
    if (height, width) != (SIDE, SIDE):
        raise DataError(f"{images}: expected images of {SIDE} x {SIDE} pixels, got {height} x {width}")
    if num_images == 0:
        raise DataError(f"{images}: expected at least 1 image, got a header for 0 images")
    if num_images > MAX_IMAGES:
        raise DataError(f"{images}: expected at most {MAX_IMAGES:,} images, got a header for {num_images:,}")

    item_type, num_dimensions = (INT, 2) if labels.name.endswith("-idx2-int") else (UBYTE, 1)
    shape = _read_shape(labels, magic(item_type, num_dimensions))
    if shape[0] != num_images:
        raise DataError(
            f"{labels}: expected {num_images:,} labels, one for each image of {images.name}, got {shape[0]:,}"
        )
    if shape[1:] not in ((), (8,)):
        raise DataError(f"{labels}: expected 8 numbers for each image, got {shape[1]}")

    values = np.fromfile(labels, dtype=ITEM_DTYPE[item_type], offset=4 + 4 * num_dimensions)
    values = values.reshape(num_images, -1)[:, 0]
    invalid = np.flatnonzero((values < 0) | (values >= num_classes))
    if len(invalid):
        raise DataError(
            f"{labels}: expected labels from 0 to {num_classes - 1}, "
            f"got {values[invalid[0]]} for image {invalid[0]:,} (counted from 0)"
        )


def _read_shape(path: Path, expected_magic: bytes) -> tuple[int, ...]:
    """Read the dimensions from the header of `path`. Raise DataError unless magic number and file size agree."""
    item_type, num_dimensions = expected_magic[2:]
    header_bytes = 4 + 4 * num_dimensions
    if path.exists() and not path.is_file():  # opening a pipe would wait for a process that writes to it
        raise DataError(f"{path}: expected a file, got a folder or another kind of entry")
    with path.open("rb") as file:
        header = file.read(header_bytes)
    if header[:4] != expected_magic:
        hint = " (is it a gzip file that was not unpacked?)" if header[:2] == b"\x1f\x8b" else ""
        raise DataError(
            f"{path}: expected the magic number {expected_magic.hex(' ')}, "
            f"got {header[:4].hex(' ') or 'nothing'}{hint}"
        )
    if len(header) < header_bytes:
        raise DataError(f"{path}: expected a header of {header_bytes} bytes, got {len(header)}")

    shape = tuple(int(n) for n in np.frombuffer(header, dtype=">u4", offset=4))
    expected_bytes = header_bytes + prod(shape) * ITEM_DTYPE[item_type].itemsize
    actual_bytes = path.stat().st_size
    if actual_bytes != expected_bytes:
        fault = "truncated" if actual_bytes < expected_bytes else "too long"
        raise DataError(f"{path} is {fault}: its header gives {expected_bytes:,} bytes, got {actual_bytes:,}")
    return shape
