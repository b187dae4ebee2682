"""The dataset of the tests of checkpoints, and short runs of the training command."""

from __future__ import annotations

from pathlib import Path

import pytest

from manualgrad import data
from manualgrad.training import plots
from tests.training.command_line import train


@pytest.fixture(scope="module")
def dataset() -> data.Dataset:
    return data.bundled_sample().limited(40)


@pytest.fixture
def common(digits, tmp_path) -> tuple:
    """Options of a run with 20 steps, 10 in each epoch."""
    return ("--dataset", "fashion-mnist", "--data-dir", digits, "--limit", 100, "--batch-size", 10, "--epochs", 2,
            "--out", tmp_path / "out")  # fmt: skip


@pytest.fixture(scope="session")
def uninterrupted(digits, tmp_path_factory) -> Path:
    """Output folder of a run with the options of ``common`` that was not interrupted."""
    out = tmp_path_factory.mktemp("uninterrupted")
    options = ("--dataset", "fashion-mnist", "--data-dir", digits, "--limit", 100, "--batch-size", 10, "--epochs", 2)
    assert train(*options, "--out", out, "--log-dir", out / "events").returncode == 0
    return out


@pytest.fixture
def no_plots(monkeypatch) -> None:
    """Skip the plots, which take most of the time of such short runs. test_train.py checks them."""
    for name in ("training_curves", "confusion_matrix", "kernel_images", "misclassified_images", "save_png"):
        monkeypatch.setattr(plots, name, lambda *_: None)
