"""Promise: damaged files are refused with a message that names them, and existing files are never replaced."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import os
import re

import numpy as np
import pytest
import torch
from torchvision import datasets

from manualgrad.data import NAMES, Split, load, sources
from manualgrad.data.sources import SOURCES
from tests.data.dataset_files import (
    FILES,
    IMAGES,
    LABELS,
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    digits,
    error_of_load,
    file_contents,
    idx,
    packed_files,
    write_files,
)


@pytest.mark.parametrize("name", NAMES)
def test_classes_and_archives_are_those_of_torchvision(name):
    """The names of the classes stand in our own source, so that reading files does not import torchvision."""
    source = SOURCES[name]
    classes = datasets.EMNIST.classes_split_dict["balanced"] if name == "emnist" else source.reader.classes
    assert source.classes == tuple(classes)
    assert source.archives and all(re.fullmatch("[0-9a-f]{32}", md5) for md5 in source.archives.values())


def test_existing_files_are_loaded_unchanged(tmp_path):
    write_files(tmp_path)
    data = load("fashion-mnist", tmp_path, announce=pytest.fail)
    images, labels = digits(30, 1)
    assert data.train.images.dtype == torch.uint8 and data.train.labels.dtype == torch.int64
    assert np.array_equal(data.train.images.numpy(), images[:, None])
    assert np.array_equal(data.train.labels.numpy(), labels)
    assert np.array_equal(data.test.images.numpy(), digits(20, 2)[0][:, None])
    assert (data.name, data.source, data.is_sample) == ("fashion-mnist", f"files under {tmp_path}", False)
    assert data.classes[9] == "Ankle boot"
    assert data.mean == pytest.approx((images / 255).mean(), rel=1e-12)
    assert data.std == pytest.approx((images / 255).std(), rel=1e-12)


def test_qmnist_labels_are_classes(tmp_path):
    names, files = SOURCES["qmnist"].files, list(file_contents().values())
    for position, count in ((1, 30), (3, 20)):
        full = np.full((count, 8), -7, np.int32)
        full[:, 0] = np.arange(count) % 10
        files[position] = idx(full)
    raw = write_files(tmp_path, dict(zip(names, files, strict=True)), "qmnist")
    data = load("qmnist", tmp_path)
    assert data.train.labels.tolist() == [n % 10 for n in range(30)]
    assert data.test.labels.shape == (20,) and data.test.labels.dtype == torch.int64

    for invalid, message in (
        (full - 1, "got -1 for image 0"),
        (full[:, :7], "expected 8 numbers for each image"),
    ):
        (raw / names[3]).write_bytes(idx(invalid))
        assert message in error_of_load(tmp_path, "qmnist") and names[3] in error_of_load(tmp_path, "qmnist")


def test_emnist_images_are_upright(tmp_path):
    files = dict(zip(SOURCES["emnist"].files, file_contents().values(), strict=True))
    raw = write_files(tmp_path, files, "emnist")
    data = load("emnist", tmp_path)
    assert np.array_equal(data.train.images.numpy(), digits(30, 1)[0].transpose(0, 2, 1)[:, None])
    assert data.train.images.is_contiguous()
    assert len(data.classes) == 47 and data.classes[46] == "t"
    (raw / SOURCES["emnist"].files[3]).write_bytes(idx(np.full(20, 47, np.uint8)))
    assert "from 0 to 46, got 47" in error_of_load(tmp_path, "emnist")


DAMAGE = {
    "truncated by a byte": (TRAIN_IMAGES, idx(IMAGES)[:-1], "truncated: its header gives 23,536 bytes"),
    "a byte appended": (TRAIN_IMAGES, idx(IMAGES) + b"\0", "too long: its header gives 23,536 bytes"),
    "labels truncated": (TRAIN_LABELS, idx(LABELS)[:-1], "truncated: its header gives 38 bytes"),
    "a label appended": (TRAIN_LABELS, idx(LABELS) + b"\0", "too long: its header gives 38 bytes"),
    "labels for images": (
        TRAIN_IMAGES,
        idx(LABELS),
        "expected the magic number 00 00 08 03, got 00 00 08 01",
    ),
    "images for labels": (
        TEST_LABELS,
        idx(IMAGES),
        "expected the magic number 00 00 08 01, got 00 00 08 03",
    ),
    "empty": (TEST_IMAGES, b"", "got nothing"),
    "truncated in the header": (TEST_IMAGES, idx(IMAGES)[:9], "expected a header of 16 bytes, got 9"),
    "not unpacked": (TRAIN_LABELS, gzip.compress(idx(LABELS)), "gzip file"),
    "no images": (TRAIN_IMAGES, idx(IMAGES[:0]), "a header for 0 images"),
    "another size": (TRAIN_IMAGES, idx(IMAGES[:, 1:]), "expected images of 28 x 28 pixels, got 27 x 28"),
    "a missing label": (TRAIN_LABELS, idx(LABELS[1:]), "expected 30 labels"),
    "a surplus label": (TRAIN_LABELS, idx(np.append(LABELS, LABELS[:1])), "expected 30 labels"),
    "label out of range": (TRAIN_LABELS, idx(np.append(LABELS[1:], np.uint8(10))), "got 10 for image 29"),
}


@pytest.mark.parametrize("file, content, description", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_reported_with_the_file(tmp_path, file, content, description):
    raw = write_files(tmp_path)
    (raw / file).write_bytes(content)
    message = error_of_load(tmp_path)
    assert str(raw / file) in message and description in message


def test_a_change_of_any_header_byte_is_an_error(tmp_path):
    raw = write_files(tmp_path)
    for file, content in file_contents().items():
        for position in range(16 if "images" in file else 8):
            changed = bytearray(content)
            changed[position] ^= 1
            (raw / file).write_bytes(changed)
            assert str(raw / file) in error_of_load(tmp_path), position
        (raw / file).write_bytes(content)
    load("fashion-mnist", tmp_path)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_missing_files_are_listed(tmp_path, name, count):
    raw = write_files(tmp_path, name=name)
    for file in FILES[:count]:
        (raw / file).unlink()
    message = error_of_load(tmp_path, name)
    assert [str(raw / file) in message for file in FILES] == [position < count for position in range(4)]


def test_images_of_one_value_are_refused(tmp_path):
    write_files(tmp_path, {**file_contents(), TRAIN_IMAGES: idx(np.zeros((30, 28, 28), np.uint8))})
    assert "all pixels of all training images have the same value" in error_of_load(tmp_path)


def test_unusable_arguments_are_refused(tmp_path):
    assert all(name in error_of_load(tmp_path, "minst") for name in ("'minst'", *NAMES))
    (tmp_path / "file").write_text("")
    assert "expected a folder for the data, got a file" in error_of_load(tmp_path / "file", "mnist")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert str(tmp_path / "loop") in error_of_load(tmp_path / "loop", "mnist")
    folder = write_files(tmp_path) / TEST_LABELS
    folder.unlink()
    folder.mkdir()
    assert TEST_LABELS in error_of_load(tmp_path)


def test_an_unreadable_folder_is_an_error(tmp_path):
    raw = write_files(tmp_path, name="mnist")
    user = os.geteuid()
    raw.chmod(0)
    if user == 0:
        os.seteuid(65534)  # user nobody, since permissions do not apply to root
    try:
        message = error_of_load(tmp_path, "mnist")
    finally:
        os.seteuid(user)
        raw.chmod(0o700)
    assert "Permission denied" in message and str(tmp_path) in message


def test_a_pipe_and_a_sparse_file_are_refused_before_they_are_read(tmp_path):
    raw = write_files(tmp_path)
    for file, count in ((TRAIN_IMAGES, 2**32 - 1), (TRAIN_LABELS, 2**32 - 1)):
        header = idx(np.zeros((0, 28, 28) if file == TRAIN_IMAGES else 0, np.uint8))
        with (raw / file).open("wb") as sparse_file:
            sparse_file.write(header[:4] + count.to_bytes(4, "big") + header[8:])
            sparse_file.truncate(len(header) + count * (784 if file == TRAIN_IMAGES else 1))
    assert "expected at most 1,000,000 images" in error_of_load(tmp_path)
    (raw / TRAIN_IMAGES).unlink()
    os.mkfifo(raw / TRAIN_IMAGES)
    assert f"{TRAIN_IMAGES}: expected a file" in error_of_load(tmp_path)


def kaggle_files():
    return {name.replace("-idx", ".idx"): content for name, content in file_contents().items()}


@pytest.mark.parametrize("files", [file_contents(), kaggle_files(), packed_files(1)], ids=["plain", "kaggle", "gz"])
@pytest.mark.parametrize("folder", ["FashionMNIST/raw", "."])
def test_files_under_other_names_and_in_a_flat_folder_are_used(tmp_path, files, folder):
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (tmp_path / folder / name).write_bytes(content)
    for name in FILES:  # Kaggle has a folder of this name beside each file
        if name not in files:
            (tmp_path / folder / name).mkdir()
    for data_dir in (tmp_path, tmp_path / folder, tmp_path / folder.partition("/")[0]):
        data = load("fashion-mnist", data_dir, announce=pytest.fail)
        assert np.array_equal(data.train.images.numpy(), IMAGES[:, None])
        assert np.array_equal(data.test.labels.numpy(), digits(20, 2)[1])


@pytest.mark.parametrize("name", ["fashion-mnist", "kmnist"])
def test_files_of_mnist_are_not_taken_for_those_of_another_dataset(tmp_path, monkeypatch, name):
    for file, content in file_contents().items():
        (tmp_path / file).write_bytes(content)
    assert load(name, tmp_path).name == name
    monkeypatch.setitem(sources.MNIST_MD5, TRAIN_LABELS, hashlib.md5(file_contents()[TRAIN_LABELS]).hexdigest())
    assert f"{tmp_path / TRAIN_LABELS} is a file of MNIST: expected one of" in error_of_load(tmp_path, name)


def test_split_methods():
    split = Split(torch.zeros(5, 1, 28, 28, dtype=torch.uint8), torch.arange(5))
    assert len(split.first(3)) == 3 and split.first(3).labels.tolist() == [0, 1, 2]
    assert len(split.first(9)) == len(split) == 5
    assert split.to("meta").images.device.type == split.to("meta").labels.device.type == "meta"
    with pytest.raises(ValueError, match="at least 1"):
        split.first(0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        split.labels = None
