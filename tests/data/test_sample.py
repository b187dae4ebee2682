"""Promise: the bundled sample is a part of MNIST, reproducible to the byte, and an altered one is refused."""

from __future__ import annotations

import lzma
import os
import shutil
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch

from manualgrad.data import DataError, load, sample
from manualgrad.data.sources import SOURCES
from tests.data.dataset_files import FILES, ROOT, error_of_load


def test_the_sample_has_the_class_frequencies_of_the_whole():
    train, test = sample.load_sample()
    whole_train = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    whole_test = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    for split, size, whole_counts in ((train, 10_000, whole_train), (test, 2_000, whole_test)):
        assert split.images.shape == (size, 1, 28, 28) and split.images.dtype == torch.uint8
        assert split.labels.shape == (size,) and split.labels.dtype == torch.int64
        expected = np.array(whole_counts) * size / sum(whole_counts)
        assert (np.abs(np.bincount(split.labels) - expected) < 1).all()
        assert len(split.first(100).labels.unique()) == 10  # not sorted by class
    assert len(sample.PATH.read_bytes()) < 2 << 20
    assert sample.SHA256 in (sample.PATH.parent / "README.md").read_text()


def test_an_altered_sample_is_an_error(tmp_path, monkeypatch):
    content = bytearray(sample.PATH.read_bytes())
    content[len(content) // 2] ^= 1
    monkeypatch.setattr(sample, "PATH", tmp_path / "sample.tar.xz")
    with pytest.raises(DataError, match="is missing"):
        sample.load_sample()
    sample.PATH.write_bytes(content)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="was altered") as error:
        load("mnist", announce=str)
    assert str(sample.PATH) in str(error.value) and sample.SHA256 in str(error.value)


def test_the_sample_is_a_subset_of_mnist(mnist_dir):
    data = load("mnist", mnist_dir, announce=pytest.fail)

    def pairs(split):
        labels = split.labels.tolist()
        return Counter((image.tobytes(), label) for image, label in zip(split.images.numpy(), labels, strict=True))

    for sample_split, whole_split in zip(sample.load_sample(), (data.train, data.test), strict=True):
        assert pairs(sample_split) <= pairs(whole_split)


def test_the_sample_is_reproduced_byte_for_byte(mnist_dir, tmp_path):
    script = [
        sys.executable,
        ROOT / "scripts" / "make_sample.py",
        "--data-dir",
        mnist_dir,
        "--out",
        tmp_path / "again",
    ]
    run = subprocess.run(script, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    reproduced, bundled = (tmp_path / "again").read_bytes(), sample.PATH.read_bytes()
    assert lzma.decompress(reproduced) == lzma.decompress(bundled)
    assert reproduced == bundled, "equal contents in other bytes: another release of liblzma packed the sample"
    assert sample.SHA256 in run.stdout and "NOT" not in run.stdout


def test_the_whole_mnist_is_loaded(mnist_dir):
    data = load("mnist", mnist_dir, announce=pytest.fail)
    assert (len(data.train), len(data.test)) == (60_000, 10_000)
    assert (round(data.mean, 4), round(data.std, 4)) == (0.1307, 0.3081)
    assert (data.name, data.is_sample) == ("mnist", False)


@pytest.mark.parametrize("file", FILES)
def test_a_flipped_bit_in_mnist_is_an_error(mnist_dir, tmp_path, file):
    raw = tmp_path / "MNIST" / "raw"
    shutil.copytree(mnist_dir / "MNIST" / "raw", raw, copy_function=shutil.copyfile)
    with (raw / file).open("r+b") as changed:
        changed.seek(5000)
        byte = changed.read(1)[0]
        changed.seek(5000)
        changed.write(bytes([byte ^ 1]))  # a label stays in 0..9, so only the MD5 shows the change
    message = error_of_load(tmp_path, "mnist")
    assert str(raw / file) in message and SOURCES["mnist"].md5[file] in message
