"""No network in these tests, and the folder with the whole MNIST."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.error import URLError

import pytest

from manualgrad.data import NAMES
from manualgrad.data.sources import SOURCES
from tests.data.dataset_files import ROOT


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def download(self):
        raise URLError("no network in tests")

    for name in NAMES:
        monkeypatch.setattr(SOURCES[name].reader, "download", download)


@pytest.fixture
def mnist_dir():
    """Folder with the whole MNIST."""
    folder = Path(os.environ.get("MANUALGRAD_DATA_DIR") or ROOT.parent / "shared" / "mnist")
    if not (folder / "MNIST" / "raw").is_dir():
        pytest.skip(f"needs the whole MNIST: set MANUALGRAD_DATA_DIR to a folder with MNIST/raw (not in {folder})")
    return folder
