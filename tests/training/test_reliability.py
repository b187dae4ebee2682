"""Promise: a killed or interrupted run resumes, and no saved work is lost (docs/reliability.md)."""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import subprocess
import sys

import pytest

from manualgrad.training import command
from manualgrad.training.checkpoints import CheckpointStore
from manualgrad.training.signals import SignalHandler, sigterm_as_before
from tests.training.command_line import train
from tests.training.short_runs import ENVIRONMENT, ROOT, at_step, lines, same_weights

pytestmark = pytest.mark.usefixtures("no_plots")

# Killed, interrupted, resumed


def test_three_killed_runs_end_with_the_same_bits():
    """docs/reliability.md has the result for a hundred runs of the same script."""
    result = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "kill_and_resume.py"), "3", "--seed", str(os.getpid())],
        capture_output=True, text=True, timeout=500, check=False, env=ENVIRONMENT,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.findall(r"^ +(\d)  killed (.*)$", result.stdout, re.M) == [
        ("2", "at a random moment, bit-equal"), ("1", "while a checkpoint was written, bit-equal")
    ]  # fmt: skip


def test_sigterm_after_an_exception_does_not_end_the_process_before_its_message():
    """torchrun sends it to each rank that is left, when one is lost."""
    before = signal.getsignal(signal.SIGTERM)
    with sigterm_as_before():
        with pytest.raises(RuntimeError), SignalHandler():
            raise RuntimeError("lost the connection")
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("step", [7, 10, 20])
def test_a_signal_stops_the_run_after_its_step_and_saves(
    common, uninterrupted, tmp_path, monkeypatch, number, code, step
):
    with monkeypatch.context() as patch:
        at_step(patch, step, lambda: os.kill(os.getpid(), number))
        stopped = train(*common)
    out = tmp_path / "out"
    checkpoint = out / "checkpoints" / f"step-{step:09}.checkpoint"
    assert stopped.returncode == code
    assert f"{number.name}: stopped after step {step} of 20" in stopped.stderr
    assert f"{checkpoint} is complete: continue from it with --resume auto" in stopped.stderr
    assert [path.name for path in checkpoint.parent.iterdir()] == [checkpoint.name]
    assert not (out / "weights.pt").exists()
    assert signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL), "the handler is restored"
    resumed = train(*common, "--resume", "auto")
    assert resumed.returncode == 0, resumed.stderr
    assert f"resume  after step {step} of 20, from {checkpoint}" in resumed.stdout
    assert same_weights(out, uninterrupted)
    assert json.loads((out / "metrics.json").read_text())["losses"] == [
        line["cost"] for line in lines(uninterrupted) if "images" in line
    ]


def test_a_second_sigint_stops_at_once(common, tmp_path):
    """In an endless step the first signal prints a message, and the second ends the process."""
    program = (
        "import sys, time\n"
        "from manualgrad.training import command\n"
        "command.TrainingRun.train_step = lambda self: (print('in a step', flush=True), time.sleep(100))\n"
        "raise SystemExit(command.main(sys.argv[1:]))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, common)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    while "in a step" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    while "SIGINT: stopping after the step in progress" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == -signal.SIGINT  # a shell shows 130
    process.stdout.close()
    process.stderr.close()


def test_a_signal_is_recorded_and_the_handlers_are_restored(capfd):
    before = signal.getsignal(signal.SIGTERM)
    with SignalHandler() as signals:
        assert signals.received == 0
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == signal.SIGTERM
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) == before
    assert "SIGTERM: stopping after the step in progress" in capfd.readouterr().err


def test_resume_auto_without_a_checkpoint_starts_a_run_and_says_so(common, tmp_path):
    result = train(*common, "--resume", "auto")
    assert result.returncode == 0
    assert f"resume  no checkpoint in {tmp_path / 'out' / 'checkpoints'}: starting at step 0" in result.stdout


def test_a_finished_run_is_not_trained_again(common, uninterrupted, tmp_path, monkeypatch):
    assert train(*common, "--checkpoint-every", 7).returncode == 0
    kept = [path.name for path in CheckpointStore(tmp_path / "out" / "checkpoints").newest_first()]
    assert kept == [f"step-{step:09}.checkpoint" for step in (20, 14, 7)], "the last step is saved as well"
    (tmp_path / "out" / "weights.pt").unlink()
    monkeypatch.setattr(command.TrainingRun, "train_step", pytest.fail)
    assert train(*common, "--resume", "auto").returncode == 0
    assert same_weights(tmp_path / "out", uninterrupted)


def test_checkpoints_of_an_earlier_run_are_not_overwritten(common, tmp_path):
    assert train(*common, "--checkpoint-every", 10).returncode == 0
    again = train(*common)
    assert again.returncode == 2
    assert "contains checkpoints of an earlier run: continue it with --resume auto, remove" in again.stderr


@pytest.mark.parametrize("option, message", [
    (("--seed", 1), "seed: 0 in the checkpoint, 1 in this run"),
    (("--batch-size", 20), "batch size: 10 in the checkpoint, 20 in this run"),
    (("--learning-rate", 0.5), "learning rate: 0.25 in the checkpoint, 0.5 in this run"),
    (("--limit", 99), "dataset: 'fashion-mnist, first 100 training images' in the checkpoint"),
])  # fmt: skip
def test_a_run_with_other_settings_is_not_resumed(common, tmp_path, monkeypatch, option, message):
    at_step(monkeypatch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert train(*common).returncode == 143
    for resume in ("auto", tmp_path / "out" / "checkpoints" / "step-000000003.checkpoint"):
        result = train(*common, *option, "--resume", resume)
        assert result.returncode == 2
        assert message in result.stderr and "Traceback" not in result.stderr


def test_a_run_resumes_with_another_engine_output_folder_and_checkpoint_interval(
    common, uninterrupted, tmp_path, monkeypatch
):
    """None of them changes the weights."""
    with monkeypatch.context() as patch:
        at_step(patch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert train(*common, "--engine", "document").returncode == 143
    checkpoint = tmp_path / "out" / "checkpoints" / "step-000000003.checkpoint"
    result = train(*common[:-1], tmp_path / "elsewhere", "--resume", checkpoint, "--checkpoint-every", 9)
    assert result.returncode == 0, result.stderr
    assert same_weights(tmp_path / "elsewhere", uninterrupted)


# docs/reliability.md


def test_every_row_of_the_page_names_an_existing_test():
    """Each row of the table of faults names a test as file::test."""
    page = (ROOT / "docs" / "reliability.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ") and "---" not in line][1:]
    assert len(rows) > 20
    for row in rows:
        tests = re.findall(r"`(tests/[\w/]+\.py)::([\w:]+)`", row.split("|")[3])
        assert tests, f"no test in the row: {row}"
        for file, test in tests:
            tree = ast.parse((ROOT / file).read_text())
            names = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
            assert set(test.split("::")) <= names, f"{file} has no {test}"
