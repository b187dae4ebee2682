"""Promise: broken streams, signals and a second run in one folder lose no work, and each gets one clear line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

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


def test_the_lock_of_a_killed_run_does_not_stay(cases):
    codes, folder = cases
    assert (codes["holder"], codes["successor"]) == (-9, 0), texts(folder, "successor")
    assert sorted(os.listdir(folder / "holder" / "out")) == ["metrics.json", "metrics.jsonl", "weights.pt"]
