"""Promise: broken streams, signals and a second run in one folder lose no work, and each gets one clear line."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from manualgrad.training import output_folder
from manualgrad.training.checkpoints import CheckpointStore

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork, which Windows lacks")
PROGRAM = Path(__file__).with_name("faults_of_processes.py")


@pytest.fixture(scope="module")
def cases(digits, tmp_path_factory) -> tuple[dict[str, int], Path]:
    """Exit code of each case of the program, and the folder with the folders of the cases."""
    folder = tmp_path_factory.mktemp("cases")
    result = subprocess.run(
        [sys.executable, str(PROGRAM), str(digits), str(folder)], capture_output=True, text=True, timeout=300,
        check=False, env={**os.environ, "PYTHONPATH": str(PROGRAM.parents[2]), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout), folder


def texts(folder: Path, case: str) -> tuple[str, str]:
    """Contents of stdout and stderr of a case."""
    return (folder / case / "stdout").read_text(), (folder / case / "stderr").read_text()


def test_a_run_with_closed_streams_writes_its_results_and_nothing_else(cases):
    codes, folder = cases
    assert codes["closed"] == 0, texts(folder, "closed")
    lines = [json.loads(line) for line in (folder / "closed" / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "images" in line] == list(range(1, 9))
    assert (folder / "closed" / "out" / "weights.pt").exists()


def test_a_run_whose_output_nobody_reads_continues_and_says_so_once(cases):
    codes, folder = cases
    assert codes["unread"] == 0
    assert (folder / "unread" / "out" / "weights.pt").exists()
    expected = "warning: stdout cannot be written to (Broken pipe): the run continues without it\n"
    assert texts(folder, "unread")[1] == expected


def test_the_help_text_is_printed_in_every_encoding_and_to_a_reader_that_stops_early(cases):
    codes, folder = cases
    assert codes["ascii"] == codes["help"] == 0
    stdout, stderr = texts(folder, "ascii")
    assert "usage: train.py" in stdout and "recursion of delta" in stdout and stderr == ""
    assert texts(folder, "help")[1] == ""


@pytest.mark.parametrize("case, code", [("terminated", 143), ("hung up", 129)])
def test_a_signal_saves_a_checkpoint_although_no_stream_is_left(cases, case, code):
    codes, folder = cases
    assert codes[case] == code
    assert len(CheckpointStore(folder / case / "out" / "checkpoints").newest_first()) == 1


def test_a_second_run_in_the_same_folder_is_refused_and_names_the_first(cases):
    codes, folder = cases
    assert codes["second"] == 2
    stdout, stderr = texts(folder, "second")
    assert stdout == ""
    out = re.escape(str(folder / "holder" / "out"))
    assert re.fullmatch(
        rf"train.py: error: --out {out} is in use by process {codes['number of holder']} on .*: "
        r"wait until it ends, or choose another --out\n",
        stderr,
    )


@pytest.mark.parametrize("reason", ["this system has no file locks", "cannot be locked (No locks available)"])
def test_without_file_locks_a_warning_says_so(tmp_path, monkeypatch, capsys, reason):
    def fail(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    if "system" in reason:
        monkeypatch.setattr(output_folder, "fcntl", None)
    else:
        monkeypatch.setattr(output_folder.fcntl, "flock", fail)
    lock = output_folder.FolderLock(tmp_path)
    lock.acquire()
    error = capsys.readouterr().err
    assert error.startswith("warning: ") and f"{reason}: start no second run with --out {tmp_path}\n" in error
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_file_that_its_owner_removed_is_not_taken_for_a_lock(tmp_path, monkeypatch):
    """A run that ends removes its file; a run that opened it just before must lock the next one."""
    lock, original = output_folder.FolderLock(tmp_path), output_folder.fcntl.flock
    calls = []

    def flock(file, operation):
        if not calls:
            (tmp_path / output_folder.LOCK).unlink()
        calls.append(operation)
        original(file, operation)

    monkeypatch.setattr(output_folder.fcntl, "flock", flock)
    lock.acquire()
    assert len(calls) == 2 and (tmp_path / output_folder.LOCK).read_text().startswith(f"process {os.getpid()} on ")
    lock.release()


def test_the_lock_of_a_killed_run_does_not_stay(cases):
    codes, folder = cases
    assert (codes["holder"], codes["successor"]) == (-9, 0), texts(folder, "successor")
    assert sorted(os.listdir(folder / "holder" / "out")) == ["metrics.json", "metrics.jsonl", "weights.pt"]
