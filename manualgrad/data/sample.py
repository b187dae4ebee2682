"""The bundled sample of MNIST, for machines without a network. mnist_sample/README.md describes its origin."""

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
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CLASSES = tuple(f"{digit} - {word}" for digit, word in enumerate(WORDS))  # as in torchvision
TRAIN, TEST = 10_000, 2_000
DESCRIPTION = f"the bundled sample of MNIST: {TRAIN:,} training and {TEST:,} test images, not the whole dataset"


def load_sample() -> tuple[Split, Split]:
    """Load the training and the test split of the sample. Raises DataError if its file is missing or altered."""
    if not PATH.is_file():
        raise DataError(f"{PATH} is missing: the bundled sample of MNIST is not installed")
    packed = PATH.read_bytes()
    sha256 = hashlib.sha256(packed).hexdigest()
    if sha256 != SHA256:
        raise DataError(f"{PATH} was altered: expected sha256 {SHA256}, got {sha256}")
    with tarfile.open(fileobj=io.BytesIO(packed), mode="r:xz") as archive:
        return _split(archive, "train", TRAIN), _split(archive, "t10k", TEST)


def _split(archive: tarfile.TarFile, prefix: str, count: int) -> Split:
    # The members are IDX files. The SHA-256 covers their headers, so they need no check.
    images = _read_member(archive, f"{prefix}-images-idx3-ubyte")
    labels = _read_member(archive, f"{prefix}-labels-idx1-ubyte")
    return Split(
        torch.frombuffer(images, dtype=torch.uint8, offset=16).reshape(count, 1, SIDE, SIDE),
        torch.frombuffer(labels, dtype=torch.uint8, offset=8).long(),
    )


def _read_member(archive: tarfile.TarFile, name: str) -> bytearray:
    member = archive.extractfile(name)
    if member is None:
        raise DataError(f"{PATH}: expected a file {name}, got another kind of member")
    return bytearray(member.read())
