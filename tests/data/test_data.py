"""Promise: damaged data is refused, nothing is replaced silently, and a failed download leaves no files."""

from __future__ import annotations

import dataclasses
import errno
import gzip
import hashlib
import lzma
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torchvision import datasets

from manualgrad.data import NAMES, DataError, Split, download, load, sample, sources
from manualgrad.data.sources import SOURCES

ROOT = Path(__file__).resolve().parents[2]
FILES = SOURCES["fashion-mnist"].files  # also those of MNIST and KMNIST
TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = FILES
MNIST_DOWNLOAD = datasets.MNIST.download


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def download(self):
        raise URLError("no network in tests")

    for name in NAMES:
        monkeypatch.setattr(SOURCES[name].reader, "download", download)


@pytest.mark.parametrize("name", NAMES)
def test_classes_and_archives_are_those_of_torchvision(name):
    """The names of the classes stand in our own source, so that reading files does not import torchvision."""
    source = SOURCES[name]
    classes = datasets.EMNIST.classes_split_dict["balanced"] if name == "emnist" else source.reader.classes
    assert source.classes == tuple(classes)
    assert source.archives and all(re.fullmatch("[0-9a-f]{32}", md5) for md5 in source.archives.values())


@pytest.fixture
def mnist_dir():
    """Folder with the whole MNIST."""
    folder = Path(os.environ.get("MANUALGRAD_DATA_DIR") or ROOT.parent / "shared" / "mnist")
    if not (folder / "MNIST" / "raw").is_dir():
        pytest.skip(f"needs the whole MNIST: set MANUALGRAD_DATA_DIR to a folder with MNIST/raw (not in {folder})")
    return folder


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


# Existing files


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


IMAGES, LABELS = digits(30, 1)
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


MUTATED = settings(
    max_examples=600, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@st.composite
def mutated(draw, contents):
    """Draw an index into ``contents`` and that content with a few changes: anywhere, or only after the header."""
    index = draw(st.integers(0, len(contents) - 1))
    changed = bytearray(contents[index])
    if draw(st.booleans()):
        kinds, positions = st.just("flip"), st.integers(16, len(changed) - 1)
    else:
        kinds = st.sampled_from(("set", "flip", "delete", "insert", "cut", "append"))
        positions = st.one_of(st.integers(0, 20), st.integers(0, len(changed)))
    for kind in draw(st.lists(kinds, max_size=3)):
        start, values = draw(positions), draw(st.binary(min_size=1, max_size=4))
        if kind == "set":
            changed[start : start + len(values)] = values
        elif kind == "flip":
            changed[start : start + 1] = bytes(byte ^ 1 << values[0] % 8 for byte in changed[start : start + 1])
        elif kind == "delete":
            del changed[start : start + len(values)]
        elif kind == "insert":
            changed[start:start] = values
        elif kind == "cut":
            del changed[start:]
        else:
            changed += values
    return index, bytes(changed)


def read_idx(content, num_dimensions, dtype):
    """Read an IDX file that has a valid header."""
    shape = np.frombuffer(content, ">u4", num_dimensions, 4)
    return np.frombuffer(content, dtype, offset=4 + 4 * num_dimensions).reshape(shape)


@pytest.mark.parametrize("name, label_format", [("fashion-mnist", (np.uint8, 1)), ("qmnist", (">i4", 2))])
def test_mutated_files_are_read_correctly_or_refused(tmp_path, name, label_format):
    """600 files for each format of labels: 1,200 in all."""
    contents = list(file_contents().values())
    if name == "qmnist":
        for position, count in ((1, 30), (3, 20)):
            contents[position] = idx(np.repeat(np.arange(count, dtype=np.int32) % 10, 8).reshape(count, 8))
    source = SOURCES[name]
    raw = write_files(tmp_path, dict(zip(source.files, contents, strict=True)), name)
    outcomes = Counter()

    @MUTATED
    @given(mutated(contents))
    def check(drawn):
        index, changed = drawn
        (raw / source.files[index]).write_bytes(changed)
        try:
            data = load(name, tmp_path, announce=pytest.fail)
        except DataError:
            data = None
        finally:
            (raw / source.files[index]).write_bytes(contents[index])
        outcomes["refused" if data is None else "read"] += 1
        if data is None:
            assert changed != contents[index], "a valid file was refused"
            return
        split = data.train if index < 2 else data.test
        if index % 2:
            actual, (dtype, num_dimensions) = split.labels.numpy(), label_format
            expected = read_idx(changed, num_dimensions, dtype)
            expected = expected if num_dimensions == 1 else expected[:, 0]
            assert expected.min() >= 0 and expected.max() <= 9
        else:
            actual, expected = split.images[:, 0].numpy(), read_idx(changed, 3, np.uint8)
        assert np.array_equal(actual, expected)

    check()
    assert min(outcomes["refused"], outcomes["read"]) > 50, "both outcomes occur"


# Archives in the folder of the files


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


def packed_files(level):
    return {f"{file}.gz": gzip.compress(content, level, mtime=level) for file, content in file_contents().items()}


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


# Other places and names


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


def test_a_given_folder_without_the_data_is_an_error_that_names_what_it_has(tmp_path):
    for name in ("digits.csv", "README.md", *(f"{n}.png" for n in range(20))):
        (tmp_path / name).write_bytes(b"")
    announced = []
    for folder, description in (
        (
            tmp_path,
            "it has: 0.png, 1.png, 10.png, 11.png, 12.png, 13.png, 14.png, 15.png, 16.png, 17.png and 12 more",
        ),
        (tmp_path / "typo", "it does not exist"),
    ):
        with pytest.raises(DataError, match=r"could not be downloaded \(<urlopen error no network") as error:
            load("mnist", folder, announce=announced.append)
        assert f"mnist is not in {folder} ({description})" in str(error.value)
    assert not any("sample" in text for text in announced)
    assert not (tmp_path / "typo").exists()


# Download


class Mirror(BaseHTTPRequestHandler):
    """Server of `files`. It sends half of `broken_file` and closes, or waits until `finished` is set."""

    files: dict
    broken_file = None
    is_silent = False
    finished: threading.Event

    def do_HEAD(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.files[self.path[1:]])))
        self.end_headers()

    def do_GET(self):
        self.do_HEAD()
        content = self.files[self.path[1:]]
        self.wfile.write(content[: len(content) // 2] if self.path[1:] == self.broken_file else content)
        if self.path[1:] == self.broken_file and self.is_silent:
            self.wfile.flush()
            self.finished.wait(20)

    def log_message(self, *args):
        pass


@pytest.fixture
def mirror(monkeypatch):
    handler = type("TestMirror", (Mirror,), {"files": published_archives(monkeypatch), "finished": threading.Event()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(datasets.FashionMNIST, "download", MNIST_DOWNLOAD)
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
    yield handler
    handler.finished.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def user_timeout():
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(123.0)
    yield 123.0
    socket.setdefaulttimeout(before)


def test_download_writes_all_files(tmp_path, mirror, user_timeout):
    announced = []
    data = load("fashion-mnist", tmp_path / "new" / "folder", announce=announced.append)
    assert np.array_equal(data.test.images.numpy(), digits(20, 2)[0][:, None])
    assert data.source == f"downloaded to {tmp_path / 'new' / 'folder'}"
    assert len(announced) == 1 and "downloading" in announced[0]
    assert socket.getdefaulttimeout() == user_timeout
    assert os.listdir(tmp_path / "new" / "folder") == ["FashionMNIST"]
    assert len(os.listdir(tmp_path / "new" / "folder" / "FashionMNIST" / "raw")) == 8
    assert load("fashion-mnist", tmp_path / "new" / "folder", announce=pytest.fail).source.startswith("files under")


@pytest.mark.parametrize("is_silent", [False, True])
def test_a_failed_download_leaves_no_files(tmp_path, monkeypatch, mirror, user_timeout, is_silent):
    monkeypatch.setattr(download, "TIMEOUT_SECONDS", 0.3)
    mirror.broken_file, mirror.is_silent = f"{TEST_IMAGES}.gz", is_silent
    start = time.perf_counter()
    with pytest.raises(DataError, match="could not be downloaded"):
        load("fashion-mnist", tmp_path / "data", announce=str)
    assert time.perf_counter() - start < 5
    assert list(tmp_path.iterdir()) == []
    assert socket.getdefaulttimeout() == user_timeout

    mirror.broken_file = None
    assert load("fashion-mnist", tmp_path / "data", announce=str).source.startswith("downloaded to")


@pytest.mark.parametrize(
    "error, raised", [(KeyboardInterrupt(), KeyboardInterrupt), (OSError(errno.ENOSPC, "full"), DataError)]
)
def test_an_interruption_or_a_full_disk_is_no_network_failure(tmp_path, monkeypatch, error, raised):
    def download(self):
        Path(self.raw_folder, TRAIN_IMAGES).write_bytes(b"half")
        raise error

    monkeypatch.setattr(datasets.MNIST, "download", download)
    with pytest.raises(raised):
        load("mnist", tmp_path, announce=str)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", NAMES[1:])
def test_without_a_network_the_error_names_the_folder_and_the_files(tmp_path, name):
    with pytest.raises(DataError, match="could not be downloaded") as error:
        load(name, tmp_path, announce=str)
    assert str(SOURCES[name].raw_folder(tmp_path)) in str(error.value)
    assert all(file in str(error.value) for file in SOURCES[name].files)
    assert list(tmp_path.iterdir()) == []


# The sample


def test_without_a_folder_and_a_network_the_sample_is_announced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    announced = []
    data = load("mnist", announce=announced.append)
    text = "\n".join(announced)
    for phrase in (
        "no network in tests",
        "bundled sample",
        "10,000 training",
        "2,000 test",
        "For the whole dataset",
    ):
        assert phrase in text
    assert "data/MNIST/raw" in text
    assert (data.name, data.source, data.is_sample) == ("mnist-sample", sample.DESCRIPTION, True)
    assert data.classes == tuple(datasets.MNIST.classes)
    assert list(tmp_path.iterdir()) == []


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


# The whole MNIST


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


def test_split_methods():
    split = Split(torch.zeros(5, 1, 28, 28, dtype=torch.uint8), torch.arange(5))
    assert len(split.first(3)) == 3 and split.first(3).labels.tolist() == [0, 1, 2]
    assert len(split.first(9)) == len(split) == 5
    assert split.to("meta").images.device.type == split.to("meta").labels.device.type == "meta"
    with pytest.raises(ValueError, match="at least 1"):
        split.first(0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        split.labels = None
