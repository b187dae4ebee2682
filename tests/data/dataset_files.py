"""Small files of images of noise, in the format of MNIST and as archives, and the error that loading them gives."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
from pathlib import Path

import numpy as np
import pytest
from torchvision import datasets

from manualgrad.data import DataError, load
from manualgrad.data.sources import SOURCES

ROOT = Path(__file__).resolve().parents[2]
FILES = SOURCES["fashion-mnist"].files  # also those of MNIST and KMNIST
TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = FILES
MNIST_DOWNLOAD = datasets.MNIST.download


def idx(array):
    """Content of an IDX file."""
    item_type = {"uint8": 0x08, "int32": 0x0C}[array.dtype.name]
    header = np.array([item_type << 8 | array.ndim, *array.shape], dtype=">u4")
    return header.tobytes() + array.astype(array.dtype.newbyteorder(">")).tobytes()


def digits(count, seed):
    """Images of noise and labels 0..9."""
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (count, 28, 28), np.uint8), (np.arange(count) % 10).astype(np.uint8)


def file_contents():
    """Contents of the four files, by name: 30 training and 20 test images of noise, labels 0..9."""
    arrays = *digits(30, 1), *digits(20, 2)
    return dict(zip(FILES, map(idx, arrays), strict=True))


def write_files(data_dir, files=None, name="fashion-mnist"):
    raw = SOURCES[name].raw_folder(data_dir)
    raw.mkdir(parents=True, exist_ok=True)
    for file, content in (file_contents() if files is None else files).items():
        (raw / file).write_bytes(content)
    return raw


def published_archives(monkeypatch, name="fashion-mnist"):
    """:func:`file_contents` as .gz files, whose MD5s are the published ones during this test."""
    packed = {f"{file}.gz": gzip.compress(content, mtime=0) for file, content in file_contents().items()}
    set_published_md5(monkeypatch, {file: hashlib.md5(content).hexdigest() for file, content in packed.items()}, name)
    return packed


def set_published_md5(monkeypatch, md5, name="fashion-mnist"):
    monkeypatch.setitem(SOURCES, name, dataclasses.replace(SOURCES[name], md5={}))
    monkeypatch.setattr(SOURCES[name].reader, "resources", list(md5.items()))


def error_of_load(data_dir, name="fashion-mnist"):
    """Message of the DataError that `load` raises, after a check that it is short and that nothing was announced."""
    announced = []
    with pytest.raises(DataError) as error:
        load(name, data_dir, announce=announced.append)
    assert announced == []
    assert len(str(error.value).splitlines()) <= 2
    return str(error.value)


IMAGES, LABELS = digits(30, 1)


def packed_files(level):
    return {f"{file}.gz": gzip.compress(content, level, mtime=level) for file, content in file_contents().items()}
