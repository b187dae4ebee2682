"""Promise: a fault of the disk gets a clear message and loses no saved work (docs/reliability.md)."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from manualgrad.files import UNFINISHED_SUFFIX
from manualgrad.training import command
from manualgrad.training.checkpoints import CheckpointStore
from manualgrad.training.metrics_logger import MetricsLogger
from tests.training.command_line import train
from tests.training.short_runs import ENVIRONMENT, at_step, same_weights

pytestmark = pytest.mark.usefixtures("no_plots")


def test_a_full_disk_ends_the_run_and_loses_no_checkpoint(common, uninterrupted, tmp_path, monkeypatch):
    """The third checkpoint is written to a device that is always full."""
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full, which Linux has")
    folder, original = tmp_path / "out" / "checkpoints", Path.open

    def open_full(self, mode="r", *arguments, **options):
        if self.name == f"step-000000012.checkpoint{UNFINISHED_SUFFIX}":
            return original(Path("/dev/full"), "wb")
        return original(self, mode, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", open_full)
        result = train(*common, "--checkpoint-every", 4)
    assert result.returncode == 1
    assert f"{folder / 'step-000000012.checkpoint'} could not be written or read: No space left" in result.stderr
    assert f"{folder / 'step-000000008.checkpoint'} is complete" in result.stderr
    assert "Traceback" not in result.stderr
    assert train(*common, "--checkpoint-every", 4, "--resume", "auto").returncode == 0
    assert same_weights(tmp_path / "out", uninterrupted)


def test_a_file_size_limit_leaves_no_partial_result(common, tmp_path):
    """The system limits files to 200,000 bytes, so weights.pt cannot be written."""
    program = (
        "import resource, sys\n"
        "from manualgrad.training import command\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "raise SystemExit(command.main(sys.argv[1:]))\n"
    )
    result = subprocess.run([sys.executable, "-c", program, *map(str, common)],
                            capture_output=True, text=True, timeout=300, check=False, env=ENVIRONMENT)  # fmt: skip
    assert result.returncode == 1
    assert re.search(r"weights\.pt could not be written or read: File too large", result.stderr)
    assert "Traceback" not in result.stderr
    assert os.listdir(tmp_path / "out") == ["metrics.jsonl"]


def test_a_folder_that_vanishes_during_the_run_is_made_again(common, uninterrupted, tmp_path, monkeypatch):
    at_step(monkeypatch, 13, lambda: shutil.rmtree(tmp_path / "out"))
    result = train(*common, "--checkpoint-every", 8)
    assert result.returncode == 0, result.stderr
    assert same_weights(tmp_path / "out", uninterrupted)
    assert sorted(os.listdir(tmp_path / "out" / "checkpoints")) == [f"step-{n:09}.checkpoint" for n in (16, 20)]


def test_a_name_that_is_too_long_is_reported(common):
    result = train(*common, "--out", "x" * 300)
    assert result.returncode == 2
    assert "cannot be written to: File name too long" in result.stderr


def test_metrics_that_cannot_be_written_are_named(common, monkeypatch, tmp_path):
    original = MetricsLogger.__init__

    def full(self, *arguments):
        original(self, *arguments)
        self._file.close()
        self._file = open("/dev/full", "ab", buffering=0)  # noqa: SIM115 MetricsLogger closes it

    monkeypatch.setattr(MetricsLogger, "__init__", full)
    result = train(*common)
    assert result.returncode == 1
    assert f"{tmp_path / 'out' / 'metrics.jsonl'} could not be written or read: No space left" in result.stderr


def test_an_unwritable_folder_is_an_error_before_the_first_step(common, tmp_path, monkeypatch):
    monkeypatch.setattr(command.TrainingRun, "train_step", pytest.fail)
    (tmp_path / "file").write_text("")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "checkpoints").write_text("")
    for change, message in (
        (("--out", tmp_path / "file" / "below"), "cannot be written to: Not a directory"),
        (("--out", "/proc/nothing"), "cannot be written to: "),
        (("--out", tmp_path / "other"), "contains a file named checkpoints: expected a folder"),
        (
            ("--log-dir", tmp_path / "file"),
            f"--log-dir {tmp_path / 'file'} cannot be written to: expected a folder, got a file",
        ),
    ):
        result = train(*common, *change)
        assert result.returncode == 2
        assert message in result.stderr and "Traceback" not in result.stderr


def test_a_truncated_checkpoint_is_refused_and_the_previous_one_resumed(common, uninterrupted, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        at_step(patch, 15, lambda: os.kill(os.getpid(), signal.SIGINT))
        assert train(*common, "--checkpoint-every", 6).returncode == 130
    newest, middle, _ = CheckpointStore(tmp_path / "out" / "checkpoints").newest_first()
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    refused = train(*common, "--resume", newest)
    assert refused.returncode == 2
    assert f"{newest} is damaged" in refused.stderr
    result = train(*common, "--resume", "auto")
    assert result.returncode == 0
    assert f"{newest} is damaged" in result.stderr and "trying the previous checkpoint" in result.stderr
    assert f"resume  after step 12 of 20, from {middle}" in result.stdout
    assert same_weights(tmp_path / "out", uninterrupted)


def test_only_damaged_checkpoints_are_an_error_and_start_no_new_run(common, tmp_path):
    folder = tmp_path / "out" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "step-000000003.checkpoint").write_bytes(b"PK")
    result = train(*common, "--resume", "auto")
    assert result.returncode == 2
    assert "none of the 1 checkpoints" in result.stderr
