"""The bundled sample of MNIST, for machines without a network. Its README.md says where it comes from."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import torch

from manualgrad.data.dataset import DataError, Split
from manualgrad.data.idx import SIDE

PATH = Path(__file__).parent / "mnist_sample" / "mnist-sample.tar.xz"
SHA256 = "63b24d74c8d0695f7f230354e915664e2954c1ee06969164cca6d6a42e63e707"
TRAIN, TEST = 10_000, 2_000
DESCRIPTION = f"the bundled sample of MNIST: {TRAIN:,} training and {TEST:,} test images, not the whole set"


def load_sample() -> tuple[Split, Split]:
    """Training and test split of the sample. DataError where its file is missing or altered."""
    if not PATH.is_file():
        raise DataError(f"{PATH} is missing: the bundled sample of MNIST was not installed")
    packed = PATH.read_bytes()
    found = hashlib.sha256(packed).hexdigest()
    if found != SHA256:
        raise DataError(f"{PATH} is altered: expected sha256 {SHA256}, found {found}")
    with tarfile.open(fileobj=io.BytesIO(packed), mode="r:xz") as archive:
        return _split(archive, "train", TRAIN), _split(archive, "t10k", TEST)


def _split(archive: tarfile.TarFile, prefix: str, count: int) -> Split:
    # The members are IDX files; that their headers are right is part of what the sha256 vouches for.
    images = bytearray(archive.extractfile(f"{prefix}-images-idx3-ubyte").read())
    labels = bytearray(archive.extractfile(f"{prefix}-labels-idx1-ubyte").read())
    return Split(
        torch.frombuffer(images, dtype=torch.uint8, offset=16).reshape(count, 1, SIDE, SIDE),
        torch.frombuffer(labels, dtype=torch.uint8, offset=8).long(),
    )
