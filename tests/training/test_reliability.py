"""Promise: a fault gets a clear message, and no saved work is lost (docs/reliability.md)."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import manualgrad as mg
from manualgrad.files import UNFINISHED_SUFFIX
from manualgrad.training import command, nonfinite, plots
from manualgrad.training.checkpoints import CheckpointStore
from manualgrad.training.metrics_logger import MetricsLogger
from manualgrad.training.signals import SignalHandler, sigterm_as_before
from tests.training.command_line import train

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def common(digits, tmp_path) -> tuple:
    """Options of a run with 20 steps, 10 in each epoch."""
    return ("--dataset", "fashion-mnist", "--data-dir", digits, "--limit", 100, "--batch-size", 10, "--epochs", 2,
            "--out", tmp_path / "out")  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(digits, tmp_path_factory) -> Path:
    """Output folder of a run with the options of ``common`` that was not interrupted."""
    out = tmp_path_factory.mktemp("uninterrupted")
    options = ("--dataset", "fashion-mnist", "--data-dir", digits, "--limit", 100, "--batch-size", 10, "--epochs", 2)
    assert train(*options, "--out", out, "--log-dir", out / "events").returncode == 0
    return out


@pytest.fixture(autouse=True)
def no_plots(monkeypatch) -> None:
    """Skip the plots, which take most of the time of such short runs. test_train.py checks them."""
    for name in ("training_curves", "confusion_matrix", "kernel_images", "misclassified_images", "save_png"):
        monkeypatch.setattr(plots, name, lambda *_: None)


def same_weights(a: Path, b: Path) -> bool:
    first, second = (torch.load(folder / "weights.pt", weights_only=True) for folder in (a, b))
    return all(torch.equal(first[name], second[name]) for name in first)


def at_step(monkeypatch, step: int, action) -> None:
    """Call ``action`` when the metrics of a step have been written, before the run checks for signals."""
    original = MetricsLogger.log_step

    def log_step(self, metrics):
        original(self, metrics)
        if metrics.step == step:
            action()

    monkeypatch.setattr(MetricsLogger, "log_step", log_step)


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


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


# The disk


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


# Numbers and memory


def test_a_non_finite_loss_is_reported_with_step_layer_and_tensor(common, tmp_path):
    result = train(*common, "--learning-rate", "1e30", "--schedule", "constant", "--checkpoint-every", 1)
    assert result.returncode == 1
    report = re.search(
        r"the loss is (nan|inf) at step (\d+) of epoch 1; the first non-finite tensor is (.*)\. The steps",
        result.stderr,
    )
    assert re.match(r"(the output of )?(conv|dense)\d.*values, the first (nan|-?inf) at index \[", report[3])
    newest = CheckpointStore(tmp_path / "out" / "checkpoints").newest_first()[0]
    assert f"{newest} is complete" in result.stderr
    assert newest.name == f"step-{int(report[2]) - 1:09}.checkpoint", "the last checkpoint with finite weights"
    assert not (tmp_path / "out" / "weights.pt").exists()


@pytest.mark.parametrize("engine", ["autograd", "document"])
@pytest.mark.parametrize("name, description", [
    ("dense2.weight", "dense2.weight, 1 of 65,536 values, the first nan at index [0, 1]"),
    ("conv1.bias", "conv1.bias, 1 of 32 values, the first nan at index [0]"),
])  # fmt: skip
def test_the_first_non_finite_tensor_is_reported(common, monkeypatch, engine, name, description):
    original = command.TrainingRun.train_step

    def train_step_with_nan(self):
        if self.step == 12:
            with torch.no_grad():
                dict(self.model.named_parameters())[name].view(-1)[1 if "weight" in name else 0] = torch.nan
        return original(self)

    monkeypatch.setattr(command.TrainingRun, "train_step", train_step_with_nan)
    result = train(*common, "--engine", engine)
    assert result.returncode == 1
    assert f"the loss is nan at step 3 of epoch 2; the first non-finite tensor is {description}" in result.stderr


def test_the_search_for_non_finite_tensors_follows_the_order_of_a_step():
    model = mg.DocumentCNN(channels=(2,), hidden=(3,))
    x = torch.randn(2, 1, 28, 28)
    model.cost(x, torch.tensor([1, 2])).backward()
    first = lambda: nonfinite.describe_first_nonfinite(nonfinite.step_tensors(model, x))  # noqa: E731
    assert first() is None
    model.conv0.weight.grad[0, 0, 0, 0] = torch.inf
    assert first().startswith("the gradient of conv0.weight, 1 of 50 values, the first inf")
    model.dense2.bias.grad[3] = -torch.inf
    assert first().startswith("the gradient of dense2.bias, 1 of 10 values, the first -inf at index [3]")
    nn.init.constant_(model.dense1.weight, 3e38)
    assert first().startswith("the output of dense1")
    x[1, 0, 2, 3] = torch.nan
    assert first() == "the input, 1 of 1,568 values, the first nan at index [1, 0, 2, 3]"


def memory_error():
    raise MemoryError


@pytest.mark.parametrize("allocate", [
    lambda self: torch.empty(1 << 60, dtype=torch.uint8),
    lambda self: np.empty(1 << 60, dtype=np.uint8),
    lambda self: memory_error(),
], ids=["torch", "numpy", "without words"])  # fmt: skip
def test_out_of_memory_is_reported_with_advice(common, monkeypatch, allocate):
    monkeypatch.setattr(command.TrainingRun, "train_step", allocate)
    result = train(*common)
    assert result.returncode == 1
    assert (
        "out of memory: try a smaller --batch-size or network (" in result.stderr and "Traceback" not in result.stderr
    )


def test_a_programming_error_keeps_its_traceback(common, monkeypatch):
    def fail(self):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(command.TrainingRun, "train_step", fail)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        train(*common)


# Watching a run


def test_the_metrics_of_a_step_are_written_at_once(common, tmp_path, monkeypatch):
    written = []
    at_step(monkeypatch, 13, lambda: written.extend(lines(tmp_path / "out")))
    assert train(*common).returncode == 0
    assert written[0]["event"] == "start" and written[0]["step"] == 0 and written[0]["steps"] == 20
    assert [line["step"] for line in written if "images" in line] == list(range(1, 14))
    assert {"cost", "images", "right", "learning_rate"} < written[-1].keys()
    (epoch,) = [line for line in written if "test_accuracy" in line]
    assert epoch["step"] == 10 and epoch["epoch"] == 1


def test_metrics_continue_where_the_run_resumes(common, tmp_path, uninterrupted, monkeypatch):
    """Lines after the checkpoint and a truncated line are removed, so every step has one line."""
    with monkeypatch.context() as patch:
        at_step(patch, 7, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert train(*common).returncode == 143
    path = tmp_path / "out" / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"step": 8, "cost": 1.0}\n{"step": 9, "co')
    assert train(*common, "--resume", "auto").returncode == 0
    drop_seconds = [{key: value for key, value in line.items() if key != "seconds"}
                    for line in lines(tmp_path / "out") if line.get("event") is None]  # fmt: skip
    assert drop_seconds == [{key: value for key, value in line.items() if key != "seconds"}
                            for line in lines(uninterrupted) if line.get("event") is None]  # fmt: skip
    assert [line["step"] for line in lines(tmp_path / "out") if line.get("event") == "start"] == [0, 7]


def test_tensorboard_events_have_every_step(uninterrupted):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(uninterrupted / "events"))
    events.Reload()
    tags = {"cost/training", "learning rate", "cost/test", "accuracy/training", "accuracy/test"}
    assert set(events.Tags()["scalars"]) == tags
    losses = [(line["step"], line["cost"]) for line in lines(uninterrupted) if "images" in line]
    scalars = [(event.step, event.value) for event in events.Scalars("cost/training")]
    assert [step for step, _ in scalars] == [step for step, _ in losses]
    assert [value for _, value in scalars] == pytest.approx([loss for _, loss in losses])
    assert [event.step for event in events.Scalars("accuracy/test")] == [10, 20]


def test_without_tensorboard_the_error_names_the_extra(common, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    result = train(*common, "--log-dir", tmp_path / "events")
    assert result.returncode == 2
    assert 'not installed: pip install "manualgrad[tensorboard]"' in result.stderr
    assert not (tmp_path / "events").exists()


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
