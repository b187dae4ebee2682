"""Data: nothing damaged is trained on, nothing is replaced silently, no failed download leaves a trace."""

from __future__ import annotations

import dataclasses
import errno
import gzip
import hashlib
import lzma
import os
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

from manualgrad.data import NAMES, DataError, Split, download, load, sample
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


@pytest.fixture
def whole():
    folder = Path(os.environ.get("MANUALGRAD_DATA_DIR") or ROOT.parent / "shared" / "mnist")
    if not (folder / "MNIST" / "raw").is_dir():
        pytest.skip(f"needs the whole MNIST: set MANUALGRAD_DATA_DIR to a folder with MNIST/raw (not in {folder})")
    return folder


def idx(array):
    item = {"uint8": 0x08, "int32": 0x0C}[array.dtype.name]
    header = np.array([item << 8 | array.ndim, *array.shape], dtype=">u4")
    return header.tobytes() + array.astype(array.dtype.newbyteorder(">")).tobytes()


def digits(count, seed):
    draw = np.random.default_rng(seed)
    return draw.integers(0, 256, (count, 28, 28), np.uint8), (np.arange(count) % 10).astype(np.uint8)


def small():
    """The contents of four files: 30 training and 20 test images of noise, labels 0..9."""
    arrays = *digits(30, 1), *digits(20, 2)
    return dict(zip(FILES, map(idx, arrays), strict=True))


def put(data_dir, files=None, name="fashion-mnist"):
    raw = SOURCES[name].raw_folder(data_dir)
    raw.mkdir(parents=True, exist_ok=True)
    for file, content in (small() if files is None else files).items():
        (raw / file).write_bytes(content)
    return raw


def archives(monkeypatch, name="fashion-mnist"):
    """`small` as .gz files, which are made the published ones for this test."""
    packed = {f"{file}.gz": gzip.compress(content, mtime=0) for file, content in small().items()}
    publish(monkeypatch, {file: hashlib.md5(content).hexdigest() for file, content in packed.items()}, name)
    return packed


def publish(monkeypatch, md5, name="fashion-mnist"):
    monkeypatch.setitem(SOURCES, name, dataclasses.replace(SOURCES[name], archives=md5, md5={}))
    monkeypatch.setattr(SOURCES[name].reader, "resources", list(md5.items()))


def refused(data_dir, name="fashion-mnist"):
    """The message with which `load` refuses, which is short and comes without a download."""
    announced = []
    with pytest.raises(DataError) as error:
        load(name, data_dir, announce=announced.append)
    assert announced == []
    assert len(str(error.value).splitlines()) <= 2
    return str(error.value)


# Files that are there


def test_files_are_loaded_as_they_are(tmp_path):
    put(tmp_path)
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


def test_qmnist_has_class_labels(tmp_path):
    names, files = SOURCES["qmnist"].files, list(small().values())
    for place, count in ((1, 30), (3, 20)):
        full = np.full((count, 8), -7, np.int32)
        full[:, 0] = np.arange(count) % 10
        files[place] = idx(full)
    raw = put(tmp_path, dict(zip(names, files, strict=True)), "qmnist")
    data = load("qmnist", tmp_path)
    assert data.train.labels.tolist() == [n % 10 for n in range(30)]
    assert data.test.labels.shape == (20,) and data.test.labels.dtype == torch.int64

    for wrong, words in (
        (full - 1, "found -1 for image 0"),
        (full[:, :7], "expected 8 numbers for each image"),
    ):
        (raw / names[3]).write_bytes(idx(wrong))
        assert words in refused(tmp_path, "qmnist") and names[3] in refused(tmp_path, "qmnist")


def test_emnist_stands_upright(tmp_path):
    files = dict(zip(SOURCES["emnist"].files, small().values(), strict=True))
    raw = put(tmp_path, files, "emnist")
    data = load("emnist", tmp_path)
    assert np.array_equal(data.train.images.numpy(), digits(30, 1)[0].transpose(0, 2, 1)[:, None])
    assert data.train.images.is_contiguous()
    assert len(data.classes) == 47 and data.classes[46] == "t"
    (raw / SOURCES["emnist"].files[3]).write_bytes(idx(np.full(20, 47, np.uint8)))
    assert "from 0 to 46, found 47" in refused(tmp_path, "emnist")


IMAGES, LABELS = digits(30, 1)
DAMAGE = {
    "truncated by a byte": (TRAIN_IMAGES, idx(IMAGES)[:-1], "truncated: expected 23,536 bytes"),
    "a byte appended": (TRAIN_IMAGES, idx(IMAGES) + b"\0", "too long: expected 23,536 bytes"),
    "labels truncated": (TRAIN_LABELS, idx(LABELS)[:-1], "truncated: expected 38 bytes"),
    "a label appended": (TRAIN_LABELS, idx(LABELS) + b"\0", "too long: expected 38 bytes"),
    "labels for images": (
        TRAIN_IMAGES,
        idx(LABELS),
        "expected the magic number 00 00 08 03, found 00 00 08 01",
    ),
    "images for labels": (
        TEST_LABELS,
        idx(IMAGES),
        "expected the magic number 00 00 08 01, found 00 00 08 03",
    ),
    "empty": (TEST_IMAGES, b"", "found nothing"),
    "cut in the header": (TEST_IMAGES, idx(IMAGES)[:9], "expected a header of 16 bytes, found only 9"),
    "not unpacked": (TRAIN_LABELS, gzip.compress(idx(LABELS)), "gzip file"),
    "no images": (TRAIN_IMAGES, idx(IMAGES[:0]), "announces none"),
    "another size": (TRAIN_IMAGES, idx(IMAGES[:, 1:]), "expected images of 28 x 28 pixels, found 27 x 28"),
    "a label too few": (TRAIN_LABELS, idx(LABELS[1:]), "expected 30 labels"),
    "a label too many": (TRAIN_LABELS, idx(np.append(LABELS, LABELS[:1])), "expected 30 labels"),
    "label out of range": (TRAIN_LABELS, idx(np.append(LABELS[1:], np.uint8(10))), "found 10 for image 29"),
}


@pytest.mark.parametrize("file, content, words", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_named(tmp_path, file, content, words):
    raw = put(tmp_path)
    (raw / file).write_bytes(content)
    message = refused(tmp_path)
    assert str(raw / file) in message and words in message


def test_every_byte_of_every_header_counts(tmp_path):
    raw = put(tmp_path)
    for file, content in small().items():
        for place in range(16 if "images" in file else 8):
            changed = bytearray(content)
            changed[place] ^= 1
            (raw / file).write_bytes(changed)
            assert str(raw / file) in refused(tmp_path), place
        (raw / file).write_bytes(content)
    load("fashion-mnist", tmp_path)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_missing_files_are_named(tmp_path, name, count):
    raw = put(tmp_path, name=name)
    for file in FILES[:count]:
        (raw / file).unlink()
    message = refused(tmp_path, name)
    assert [str(raw / file) in message for file in FILES] == [place < count for place in range(4)]


def test_nothing_to_see_is_refused(tmp_path):
    put(tmp_path, {**small(), TRAIN_IMAGES: idx(np.zeros((30, 28, 28), np.uint8))})
    assert "all pixels of all training images are the same" in refused(tmp_path)


def test_old_cache_is_refused(tmp_path):
    cache = put(tmp_path).with_name("processed") / "training.pt"
    cache.parent.mkdir()
    torch.save((torch.zeros(1, 28, 28, dtype=torch.uint8), torch.zeros(1).long()), cache)
    assert str(cache) in refused(tmp_path)


def test_unusable_arguments(tmp_path):
    assert all(name in refused(tmp_path, "minst") for name in ("'minst'", *NAMES))
    (tmp_path / "file").write_text("")
    assert "is a file" in refused(tmp_path / "file", "mnist")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert str(tmp_path / "loop") in refused(tmp_path / "loop", "mnist")
    folder = put(tmp_path) / TEST_LABELS
    folder.unlink()
    folder.mkdir()
    assert TEST_LABELS in refused(tmp_path)


def test_unreadable_folder(tmp_path):
    raw = put(tmp_path, name="mnist")
    user = os.geteuid()
    raw.chmod(0)
    if user == 0:
        os.seteuid(65534)  # nobody: permissions mean nothing to root
    try:
        message = refused(tmp_path, "mnist")
    finally:
        os.seteuid(user)
        raw.chmod(0o700)
    assert "Permission denied" in message and str(tmp_path) in message


def test_a_pipe_and_a_hole_are_refused_before_they_are_read(tmp_path):
    raw = put(tmp_path)
    for file, count in ((TRAIN_IMAGES, 2**32 - 1), (TRAIN_LABELS, 2**32 - 1)):
        header = idx(np.zeros((0, 28, 28) if file == TRAIN_IMAGES else 0, np.uint8))
        with (raw / file).open("wb") as hole:
            hole.write(header[:4] + count.to_bytes(4, "big") + header[8:])
            hole.truncate(len(header) + count * (784 if file == TRAIN_IMAGES else 1))
    assert "expected at most 1,000,000 images" in refused(tmp_path)
    (raw / TRAIN_IMAGES).unlink()
    os.mkfifo(raw / TRAIN_IMAGES)
    assert f"{TRAIN_IMAGES}: expected a file" in refused(tmp_path)


MUTATED = settings(
    max_examples=600, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@st.composite
def mutated(draw, contents):
    """One of ``contents``, by its number, with a few changes: to any bytes, or to bits behind the header alone."""
    which = draw(st.integers(0, len(contents) - 1))
    changed = bytearray(contents[which])
    if draw(st.booleans()):
        kinds, places = st.just("flip"), st.integers(16, len(changed) - 1)
    else:
        kinds = st.sampled_from(("set", "flip", "delete", "insert", "cut", "append"))
        places = st.one_of(st.integers(0, 20), st.integers(0, len(changed)))
    for kind in draw(st.lists(kinds, max_size=3)):
        at, some = draw(places), draw(st.binary(min_size=1, max_size=4))
        if kind == "set":
            changed[at : at + len(some)] = some
        elif kind == "flip":
            changed[at : at + 1] = bytes(byte ^ 1 << some[0] % 8 for byte in changed[at : at + 1])
        elif kind == "delete":
            del changed[at : at + len(some)]
        elif kind == "insert":
            changed[at:at] = some
        elif kind == "cut":
            del changed[at:]
        else:
            changed += some
    return which, bytes(changed)


def read_plainly(content, dimensions, item):
    """An IDX file as NumPy sees it, once its header is known to be right."""
    shape = np.frombuffer(content, ">u4", dimensions, 4)
    return np.frombuffer(content, item, offset=4 + 4 * dimensions).reshape(shape)


@pytest.mark.parametrize("name, labels", [("fashion-mnist", (np.uint8, 1)), ("qmnist", (">i4", 2))])
def test_mutated_files_are_read_right_or_refused(tmp_path, name, labels):
    """600 for each kind of label file: 1,200 in all."""
    contents = list(small().values())
    if name == "qmnist":
        for place, count in ((1, 30), (3, 20)):
            contents[place] = idx(np.repeat(np.arange(count, dtype=np.int32) % 10, 8).reshape(count, 8))
    source = SOURCES[name]
    raw = put(tmp_path, dict(zip(source.files, contents, strict=True)), name)
    outcomes = Counter()

    @MUTATED
    @given(mutated(contents))
    def look(drawn):
        which, changed = drawn
        (raw / source.files[which]).write_bytes(changed)
        try:
            data = load(name, tmp_path, announce=pytest.fail)
        except DataError:
            data = None
        finally:
            (raw / source.files[which]).write_bytes(contents[which])
        outcomes["refused" if data is None else "read"] += 1
        if data is None:
            assert changed != contents[which], "a good file was refused"
            return
        split = data.train if which < 2 else data.test
        if which % 2:
            found, (item, dimensions) = split.labels.numpy(), labels
            expected = read_plainly(changed, dimensions, item)
            expected = expected if dimensions == 1 else expected[:, 0]
            assert expected.min() >= 0 and expected.max() <= 9
        else:
            found, expected = split.images[:, 0].numpy(), read_plainly(changed, 3, np.uint8)
        assert np.array_equal(found, expected)

    look()
    assert min(outcomes["refused"], outcomes["read"]) > 50, "both are seen"


# Archives beside the files


def test_archives_beside_the_files_are_compared(tmp_path, monkeypatch):
    packed = archives(monkeypatch)
    raw = put(tmp_path, small() | packed)
    load("fashion-mnist", tmp_path)

    changed = bytearray(small()[TRAIN_IMAGES])
    changed[-1] ^= 1  # the structure stays right
    (raw / TRAIN_IMAGES).write_bytes(changed)
    message = refused(tmp_path)
    assert str(raw / TRAIN_IMAGES) in message and "unpacks to" in message

    (raw / TRAIN_IMAGES).write_bytes(small()[TRAIN_IMAGES])
    archive = raw / f"{TEST_LABELS}.gz"
    archive.write_bytes(packed[archive.name][:-1])
    assert str(archive) in refused(tmp_path) and "expected md5" in refused(tmp_path)
    publish(monkeypatch, {archive.name: hashlib.md5(archive.read_bytes()).hexdigest()})
    assert "expected a gzip file" in refused(tmp_path)


@pytest.mark.parametrize("published", [False, True])
def test_bomb_beside_a_file_does_not_go_off(tmp_path, monkeypatch, published):
    bomb = put(tmp_path) / f"{TRAIN_IMAGES}.gz"
    with gzip.open(bomb, "wb", compresslevel=1) as file:
        file.write(small()[TRAIN_IMAGES])
        for _ in range(64):
            file.write(bytes(1 << 22))
    if published:
        publish(monkeypatch, {bomb.name: hashlib.md5(bomb.read_bytes()).hexdigest()})
    tracemalloc.start()
    message = refused(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert ("unpacks to" if published else "expected md5 8d4fb7e6") in message
    assert peak < 8 << 20  # it unpacks to 256 MiB


def test_archives_alone_are_unpacked(tmp_path, monkeypatch):
    raw = put(tmp_path, archives(monkeypatch))
    monkeypatch.setattr(datasets.FashionMNIST, "download", MNIST_DOWNLOAD)
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])
    announced = []
    data = load("fashion-mnist", tmp_path, announce=announced.append)
    assert np.array_equal(data.train.images.numpy(), IMAGES[:, None])
    assert data.source == f"unpacked in {tmp_path}" and "unpacking" in announced[0]
    assert sorted(os.listdir(raw)) == sorted([*FILES, *(f"{file}.gz" for file in FILES)])


@pytest.mark.parametrize("fault, words", [("damaged", "expected md5"), ("missing", "could not be downloaded")])
def test_incomplete_archives_never_become_the_sample(tmp_path, monkeypatch, fault, words):
    raw = put(tmp_path, archives(monkeypatch, "mnist"), "mnist")
    archive = raw / f"{TEST_IMAGES}.gz"
    archive.write_bytes(b"damaged") if fault == "damaged" else archive.unlink()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match=words) as error:
        load("mnist", tmp_path, announce=str)
    assert TEST_IMAGES in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


# Download


class Mirror(BaseHTTPRequestHandler):
    """Serves `files`; of the one called `breaks` only half, then closes, or is silent until `over` is set."""

    files: dict
    breaks = None
    silent = False
    over: threading.Event

    def do_HEAD(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.files[self.path[1:]])))
        self.end_headers()

    def do_GET(self):
        self.do_HEAD()
        content = self.files[self.path[1:]]
        self.wfile.write(content[: len(content) // 2] if self.path[1:] == self.breaks else content)
        if self.path[1:] == self.breaks and self.silent:
            self.wfile.flush()
            self.over.wait(20)

    def log_message(self, *args):
        pass


@pytest.fixture
def mirror(monkeypatch):
    handler = type("OneMirror", (Mirror,), {"files": archives(monkeypatch), "over": threading.Event()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(datasets.FashionMNIST, "download", MNIST_DOWNLOAD)
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
    yield handler
    handler.over.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def timeout_of_the_user():
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(123.0)
    yield 123.0
    socket.setdefaulttimeout(before)


def test_download(tmp_path, mirror, timeout_of_the_user):
    announced = []
    data = load("fashion-mnist", tmp_path / "new" / "folder", announce=announced.append)
    assert np.array_equal(data.test.images.numpy(), digits(20, 2)[0][:, None])
    assert data.source == f"downloaded to {tmp_path / 'new' / 'folder'}"
    assert len(announced) == 1 and "downloading" in announced[0]
    assert socket.getdefaulttimeout() == timeout_of_the_user
    assert os.listdir(tmp_path / "new" / "folder") == ["FashionMNIST"]
    assert len(os.listdir(tmp_path / "new" / "folder" / "FashionMNIST" / "raw")) == 8
    assert load("fashion-mnist", tmp_path / "new" / "folder", announce=pytest.fail).source.startswith("files under")


@pytest.mark.parametrize("silent", [False, True])
def test_download_that_breaks_leaves_nothing(tmp_path, monkeypatch, mirror, timeout_of_the_user, silent):
    monkeypatch.setattr(download, "TIMEOUT_SECONDS", 0.3)
    mirror.breaks, mirror.silent = f"{TEST_IMAGES}.gz", silent
    start = time.perf_counter()
    with pytest.raises(DataError, match="could not be downloaded"):
        load("fashion-mnist", tmp_path / "data", announce=str)
    assert time.perf_counter() - start < 5
    assert list(tmp_path.iterdir()) == []
    assert socket.getdefaulttimeout() == timeout_of_the_user

    mirror.breaks = None
    assert load("fashion-mnist", tmp_path / "data", announce=str).source.startswith("downloaded to")


@pytest.mark.parametrize(
    "error, raised", [(KeyboardInterrupt(), KeyboardInterrupt), (OSError(errno.ENOSPC, "full"), DataError)]
)
def test_interrupted_or_full_disk_is_not_a_missing_network(tmp_path, monkeypatch, error, raised):
    def download(self):
        Path(self.raw_folder, TRAIN_IMAGES).write_bytes(b"half")
        raise error

    monkeypatch.setattr(datasets.MNIST, "download", download)
    with pytest.raises(raised):
        load("mnist", tmp_path, announce=str)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", NAMES[1:])
def test_without_a_network_others_say_where_files_go(tmp_path, name):
    with pytest.raises(DataError, match="could not be downloaded") as error:
        load(name, tmp_path, announce=str)
    assert str(SOURCES[name].raw_folder(tmp_path)) in str(error.value)
    assert all(file in str(error.value) for file in SOURCES[name].files)
    assert list(tmp_path.iterdir()) == []


# The sample


def test_without_a_network_the_sample_is_announced(tmp_path):
    announced = []
    data = load("mnist", tmp_path / "data", announce=announced.append)
    text = "\n".join(announced)
    for words in (
        "no network in tests",
        "bundled sample",
        "10,000 training",
        "2,000 test",
        "For the whole set",
    ):
        assert words in text
    assert str(tmp_path / "data" / "MNIST" / "raw") in text
    assert (data.name, data.source, data.is_sample) == ("mnist-sample", sample.DESCRIPTION, True)
    assert data.classes == tuple(datasets.MNIST.classes)
    assert list(tmp_path.iterdir()) == []


def test_sample_is_stratified():
    train, test = sample.load_sample()
    whole_train = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    whole_test = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    for split, size, whole in ((train, 10_000, whole_train), (test, 2_000, whole_test)):
        assert split.images.shape == (size, 1, 28, 28) and split.images.dtype == torch.uint8
        assert split.labels.shape == (size,) and split.labels.dtype == torch.int64
        share = np.array(whole) * size / sum(whole)
        assert (np.abs(np.bincount(split.labels) - share) < 1).all()
        assert len(split.first(100).labels.unique()) == 10  # not sorted by class
    assert len(sample.PATH.read_bytes()) < 2 << 20
    assert sample.SHA256 in (sample.PATH.parent / "README.md").read_text()


def test_altered_sample_is_noticed(tmp_path, monkeypatch):
    content = bytearray(sample.PATH.read_bytes())
    content[len(content) // 2] ^= 1
    monkeypatch.setattr(sample, "PATH", tmp_path / "sample.tar.xz")
    with pytest.raises(DataError, match="is missing"):
        sample.load_sample()
    sample.PATH.write_bytes(content)
    with pytest.raises(DataError, match="is altered") as error:
        load("mnist", tmp_path, announce=str)
    assert str(sample.PATH) in str(error.value) and sample.SHA256 in str(error.value)


def test_sample_is_part_of_whole_mnist(whole):
    data = load("mnist", whole, announce=pytest.fail)

    def pairs(split):
        labels = split.labels.tolist()
        return Counter((image.tobytes(), label) for image, label in zip(split.images.numpy(), labels, strict=True))

    for part, all_of_it in zip(sample.load_sample(), (data.train, data.test), strict=True):
        assert pairs(part) <= pairs(all_of_it)


def test_sample_is_made_again_byte_for_byte(whole, tmp_path):
    script = [
        sys.executable,
        ROOT / "scripts" / "make_sample.py",
        "--data-dir",
        whole,
        "--out",
        tmp_path / "again",
    ]
    run = subprocess.run(script, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    made, bundled = (tmp_path / "again").read_bytes(), sample.PATH.read_bytes()
    assert lzma.decompress(made) == lzma.decompress(bundled)
    assert made == bundled, "same contents, packed into other bytes: another release of liblzma made the sample"
    assert sample.SHA256 in run.stdout and "NOT" not in run.stdout


# The whole of MNIST


def test_whole_mnist(whole):
    data = load("mnist", whole, announce=pytest.fail)
    assert (len(data.train), len(data.test)) == (60_000, 10_000)
    assert (round(data.mean, 4), round(data.std, 4)) == (0.1307, 0.3081)
    assert (data.name, data.is_sample) == ("mnist", False)


@pytest.mark.parametrize("file", FILES)
def test_flipped_bit_in_mnist_is_noticed(whole, tmp_path, file):
    raw = tmp_path / "MNIST" / "raw"
    shutil.copytree(whole / "MNIST" / "raw", raw, copy_function=shutil.copyfile)
    with (raw / file).open("r+b") as changed:
        changed.seek(5000)
        byte = changed.read(1)[0]
        changed.seek(5000)
        changed.write(bytes([byte ^ 1]))  # a label stays in 0..9: only the md5 can tell
    message = refused(tmp_path, "mnist")
    assert str(raw / file) in message and SOURCES["mnist"].md5[file] in message


def test_split():
    split = Split(torch.zeros(5, 1, 28, 28, dtype=torch.uint8), torch.arange(5))
    assert len(split.first(3)) == 3 and split.first(3).labels.tolist() == [0, 1, 2]
    assert len(split.first(9)) == len(split) == 5
    assert split.to("meta").images.device.type == split.to("meta").labels.device.type == "meta"
    with pytest.raises(ValueError, match="at least 1"):
        split.first(0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        split.labels = None
