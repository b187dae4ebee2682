"""Promise: a failed download leaves no files, and without a network the message says what is missing."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from torchvision import datasets

from manualgrad.data import NAMES, DataError, download, load, sample
from manualgrad.data.sources import SOURCES
from tests.data.dataset_files import MNIST_DOWNLOAD, TEST_IMAGES, TRAIN_IMAGES, digits, published_archives


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
