"""Promise: archives are compared with their published MD5 and their files, and unpacked within limits."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import os
import tracemalloc

import numpy as np
import pytest

from manualgrad.data import DataError, load
from manualgrad.data.sources import SOURCES
from tests.data.dataset_files import (
    IMAGES,
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    error_of_load,
    file_contents,
    packed_files,
    published_archives,
    write_files,
)


def test_archives_are_compared_with_the_files(tmp_path, monkeypatch):
    packed = published_archives(monkeypatch)
    raw = write_files(tmp_path, file_contents() | packed)
    load("fashion-mnist", tmp_path)

    changed = bytearray(file_contents()[TRAIN_IMAGES])
    changed[-1] ^= 1  # the structure stays valid
    (raw / TRAIN_IMAGES).write_bytes(changed)
    message = error_of_load(tmp_path)
    assert str(raw / TRAIN_IMAGES) in message and f"the content of {TRAIN_IMAGES}.gz" in message

    (raw / TRAIN_IMAGES).write_bytes(file_contents()[TRAIN_IMAGES])
    archive = raw / f"{TEST_LABELS}.gz"
    archive.write_bytes(packed[archive.name][:-1])
    assert str(archive) in error_of_load(tmp_path) and "expected a gzip file" in error_of_load(tmp_path)


@pytest.mark.parametrize("is_unpacked", [False, True])
def test_a_gzip_bomb_is_not_unpacked(tmp_path, is_unpacked):
    bomb = write_files(tmp_path) / f"{TRAIN_IMAGES}.gz"
    with gzip.open(bomb, "wb", compresslevel=1) as file:
        file.write(file_contents()[TRAIN_IMAGES])
        for _ in range(16):
            file.write(bytes(1 << 22))
    if not is_unpacked:
        bomb.with_suffix("").unlink()
    tracemalloc.start()
    message = error_of_load(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (f"the content of {bomb.name}" if is_unpacked else f"{bomb} is too long") in message
    assert peak < 8 << 20  # it unpacks to 64 MiB


def test_archives_compressed_anew_are_no_damage(tmp_path, monkeypatch):
    md5 = {file: hashlib.md5(content).hexdigest() for file, content in file_contents().items()}
    monkeypatch.setitem(SOURCES, "mnist", dataclasses.replace(SOURCES["mnist"], md5=md5))
    for level in (1, 9):
        raw = write_files(tmp_path, packed_files(level), "mnist")
        assert np.array_equal(load("mnist", tmp_path, announce=pytest.fail).train.images.numpy(), IMAGES[:, None])
        assert sorted(os.listdir(raw)) == sorted(packed_files(level)), "nothing is unpacked to the folder"
    changed = bytearray(file_contents()[TRAIN_IMAGES])
    changed[-1] ^= 1
    (raw / f"{TRAIN_IMAGES}.gz").write_bytes(gzip.compress(changed))
    message = error_of_load(tmp_path, "mnist")
    assert f"{TRAIN_IMAGES}.gz is damaged: expected md5 {md5[TRAIN_IMAGES]}" in message

    # The MD5s of the other datasets are known for the archives only; these are not the published archives.
    write_files(tmp_path, file_contents() | packed_files(1), "fashion-mnist")
    load("fashion-mnist", tmp_path, announce=pytest.fail)


@pytest.mark.parametrize(
    "fault, description", [("damaged", "expected a gzip file"), ("missing", "only a part of MNIST")]
)
def test_incomplete_archives_are_not_replaced_by_the_sample(tmp_path, monkeypatch, fault, description):
    monkeypatch.setitem(SOURCES, "mnist", dataclasses.replace(SOURCES["mnist"], md5={}))
    raw = write_files(tmp_path / "data", packed_files(1), "mnist")
    archive = raw / f"{TEST_IMAGES}.gz"
    archive.write_bytes(b"damaged") if fault == "damaged" else archive.unlink()
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match=description) as error:
        load("mnist", announce=str)
    assert TEST_IMAGES in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before
