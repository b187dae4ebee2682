"""Promise: what goes wrong around a run is said in a line, and costs nothing that was saved (docs/reliability.md)."""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import manualgrad as mg
import train as command
from manualgrad.files import UNFINISHED
from manualgrad.training import nonfinite, pictures
from manualgrad.training.checkpoints import Store
from manualgrad.training.interruptions import Interruption
from manualgrad.training.records import Records
from tests.training.command_line import train

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def common(digits, tmp_path) -> tuple:
    """20 steps, 10 an epoch."""
    return ("--dataset", "fashion-mnist", "--data-dir", digits, "--limit", 100, "--batch-size", 10, "--epochs", 2,
            "--out", tmp_path / "out")  # fmt: skip


@pytest.fixture(scope="module")
def untouched(digits, tmp_path_factory) -> Path:
    """A run like ``common`` that nothing happens to."""
    out = tmp_path_factory.mktemp("untouched")
    options = ("--dataset", "fashion-mnist", "--data-dir", digits, "--limit", 100, "--batch-size", 10, "--epochs", 2)
    assert train(*options, "--out", out, "--log-dir", out / "events").returncode == 0
    return out


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch) -> None:
    """They take most of the time of such short runs; test_train.py looks at them."""
    for name in ("curves", "confusion", "kernels", "mistakes", "save"):
        monkeypatch.setattr(pictures, name, lambda *_: None)


def same_weights(a: Path, b: Path) -> bool:
    first, second = (torch.load(folder / "weights.pt", weights_only=True) for folder in (a, b))
    return all(torch.equal(first[name], second[name]) for name in first)


def at_step(monkeypatch, number: int, act) -> None:
    """``act`` when the line of this step has been written: before the step is over for the run."""
    original = Records.step

    def step(self, taken):
        original(self, taken)
        if taken.number == number:
            act()

    monkeypatch.setattr(Records, "step", step)


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


# Killed, interrupted, taken up


def test_three_runs_that_were_killed_end_with_the_same_bits():
    """scripts/kill_and_resume.py, which does it a hundred times."""
    result = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "kill_and_resume.py"), "3", "--seed", str(os.getpid())],
        capture_output=True, text=True, timeout=500, check=False, env=ENVIRONMENT,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.findall(r"^ +(\d)  killed (.*)$", result.stdout, re.M) == [
        ("2", "at a random moment, bit-equal"), ("1", "while a checkpoint was written, bit-equal")
    ]  # fmt: skip


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("step", [7, 10, 20])
def test_a_signal_stops_the_run_after_its_step_and_saves(
    common, untouched, tmp_path, monkeypatch, number, code, step
):
    with monkeypatch.context() as patch:
        at_step(patch, step, lambda: os.kill(os.getpid(), number))
        stopped = train(*common)
    out = tmp_path / "out"
    checkpoint = out / "checkpoints" / f"step-{step:09}.checkpoint"
    assert stopped.returncode == code
    assert f"{number.name}: stopped after step {step} of 20" in stopped.stderr
    assert f"{checkpoint} is safe; --resume auto goes on from there" in stopped.stderr
    assert [path.name for path in checkpoint.parent.iterdir()] == [checkpoint.name]
    assert not (out / "weights.pt").exists()
    assert signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL), "as before"
    went_on = train(*common, "--resume", "auto")
    assert went_on.returncode == 0, went_on.stderr
    assert f"resume  after step {step} of 20, from {checkpoint}" in went_on.stdout
    assert same_weights(out, untouched)
    assert json.loads((out / "metrics.json").read_text())["losses"] == [
        line["cost"] for line in lines(untouched) if "images" in line
    ]


def test_a_second_sigint_stops_at_once(common, tmp_path):
    """In a step that does not end: the first signal is noted and said, the second ends the process."""
    program = (
        "import sys, time, train\n"
        "train.Run.take_step = lambda self: (print('in a step', flush=True), time.sleep(100))\n"
        "raise SystemExit(train.main(sys.argv[1:]))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, common)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    while "in a step" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    while "SIGINT: this step is finished and saved" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == -signal.SIGINT  # a shell shows 130
    process.stdout.close()
    process.stderr.close()


def test_a_signal_is_noted_and_the_handlers_come_back(capfd):
    before = signal.getsignal(signal.SIGTERM)
    with Interruption() as interruption:
        assert interruption.signal == 0
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.signal == signal.SIGTERM
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) == before
    assert "SIGTERM: this step is finished" in capfd.readouterr().err


def test_without_a_checkpoint_it_begins_and_says_so(common, tmp_path):
    result = train(*common, "--resume", "auto")
    assert result.returncode == 0
    assert f"resume  no checkpoint in {tmp_path / 'out' / 'checkpoints'}: from the start" in result.stdout


def test_a_finished_run_is_not_trained_again(common, untouched, tmp_path, monkeypatch):
    assert train(*common, "--checkpoint-every", 7).returncode == 0
    kept = [path.name for path in Store(tmp_path / "out" / "checkpoints").newest_first()]
    assert kept == [f"step-{step:09}.checkpoint" for step in (20, 14, 7)], "the last step is saved too"
    (tmp_path / "out" / "weights.pt").unlink()
    monkeypatch.setattr(command.Run, "take_step", pytest.fail)
    assert train(*common, "--resume", "auto").returncode == 0
    assert same_weights(tmp_path / "out", untouched)


def test_checkpoints_of_an_earlier_run_are_not_overwritten(common, tmp_path):
    assert train(*common, "--checkpoint-every", 10).returncode == 0
    again = train(*common)
    assert again.returncode == 2
    assert "holds checkpoints of an earlier run: go on from them with --resume auto, or remove" in again.stderr


@pytest.mark.parametrize("option, words", [
    (("--seed", 1), "seed is 0 there and 1 here"),
    (("--batch-size", 20), "batch size is 10 there and 20 here"),
    (("--learning-rate", 0.5), "learning rate is 0.25 there and 0.5 here"),
    (("--limit", 99), "dataset is 'fashion-mnist, first 100 training images' there"),
])  # fmt: skip
def test_a_run_with_other_settings_is_not_taken_up(common, tmp_path, monkeypatch, option, words):
    at_step(monkeypatch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert train(*common).returncode == 143
    for resume in ("auto", tmp_path / "out" / "checkpoints" / "step-000000003.checkpoint"):
        result = train(*common, *option, "--resume", resume)
        assert result.returncode == 2
        assert words in result.stderr and "Traceback" not in result.stderr


def test_what_may_be_another(common, untouched, tmp_path, monkeypatch):
    """The engine gives the same numbers; where results go, and how often it is saved, changes none."""
    with monkeypatch.context() as patch:
        at_step(patch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert train(*common, "--engine", "document").returncode == 143
    checkpoint = tmp_path / "out" / "checkpoints" / "step-000000003.checkpoint"
    result = train(*common[:-1], tmp_path / "elsewhere", "--resume", checkpoint, "--checkpoint-every", 9)
    assert result.returncode == 0, result.stderr
    assert same_weights(tmp_path / "elsewhere", untouched)


# The disk


def test_a_full_disk_ends_the_run_and_loses_nothing(common, untouched, tmp_path):
    """Where the third checkpoint would be written, there is the device that is always full."""
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full, which Linux has")
    folder = tmp_path / "out" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / f"step-000000012.checkpoint{UNFINISHED}").symlink_to("/dev/full")
    result = train(*common, "--checkpoint-every", 4)
    assert result.returncode == 1
    assert f"{folder / 'step-000000012.checkpoint'} could not be written or read: No space left" in result.stderr
    assert f"{folder / 'step-000000008.checkpoint'} is safe" in result.stderr
    assert "Traceback" not in result.stderr
    assert train(*common, "--checkpoint-every", 4, "--resume", "auto").returncode == 0
    assert same_weights(tmp_path / "out", untouched)


def test_a_file_size_limit_in_the_midst_of_results(common, tmp_path):
    """The kernel refuses what is beyond 200,000 bytes: of weights.pt there is nothing then, rather than half."""
    program = (
        "import resource, sys, train\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "raise SystemExit(train.main(sys.argv[1:]))\n"
    )
    result = subprocess.run([sys.executable, "-c", program, *map(str, common)],
                            capture_output=True, text=True, timeout=300, check=False, env=ENVIRONMENT)  # fmt: skip
    assert result.returncode == 1
    assert re.search(r"weights\.pt could not be written or read: File too large", result.stderr)
    assert "Traceback" not in result.stderr
    assert os.listdir(tmp_path / "out") == ["metrics.jsonl"]


def test_metrics_that_cannot_be_written_are_named(common, monkeypatch, tmp_path):
    original = Records.__init__

    def full(self, *arguments):
        original(self, *arguments)
        self._file.close()
        self._file = open("/dev/full", "ab", buffering=0)  # noqa: SIM115 Records closes it

    monkeypatch.setattr(Records, "__init__", full)
    result = train(*common)
    assert result.returncode == 1
    assert f"{tmp_path / 'out' / 'metrics.jsonl'} could not be written or read: No space left" in result.stderr


def test_unwritable_folders_are_named_before_any_work(common, tmp_path, monkeypatch):
    monkeypatch.setattr(command.Run, "take_step", pytest.fail)
    (tmp_path / "file").write_text("")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "checkpoints").write_text("")
    for change, words in (
        (("--out", tmp_path / "file" / "below"), "cannot be written to: Not a directory"),
        (("--out", "/proc/nothing"), "cannot be written to: "),
        (("--out", tmp_path / "other"), "holds a file checkpoints, where a folder is to be made"),
        (("--log-dir", tmp_path / "file"), f"--log-dir {tmp_path / 'file'} cannot be written to"),
    ):
        result = train(*common, *change)
        assert result.returncode == 2
        assert words in result.stderr and "Traceback" not in result.stderr


def test_a_checkpoint_cut_in_half(common, untouched, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        at_step(patch, 15, lambda: os.kill(os.getpid(), signal.SIGINT))
        assert train(*common, "--checkpoint-every", 6).returncode == 130
    newest, middle, _ = Store(tmp_path / "out" / "checkpoints").newest_first()
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    named = train(*common, "--resume", newest)
    assert named.returncode == 2
    assert f"{newest} is damaged" in named.stderr
    result = train(*common, "--resume", "auto")
    assert result.returncode == 0
    assert f"{newest} is damaged" in result.stderr and "trying the one before it" in result.stderr
    assert f"resume  after step 12 of 20, from {middle}" in result.stdout
    assert same_weights(tmp_path / "out", untouched)


def test_no_sound_checkpoint_is_an_error_and_not_a_new_run(common, tmp_path):
    folder = tmp_path / "out" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "step-000000003.checkpoint").write_bytes(b"PK")
    result = train(*common, "--resume", "auto")
    assert result.returncode == 2
    assert "none of the 1 checkpoints" in result.stderr


# Numbers and memory


def test_a_cost_that_is_not_finite_names_step_layer_and_tensor(common, tmp_path):
    result = train(*common, "--learning-rate", "1e30", "--schedule", "constant", "--checkpoint-every", 1)
    assert result.returncode == 1
    said = re.search(
        r"the cost is (nan|inf) at step (\d+) of epoch 1: not finite is first (.*): the steps", result.stderr
    )
    assert re.match(r"(the output of )?(conv|dense)\d.*values, the first (nan|-?inf) at \[", said[3])
    newest = Store(tmp_path / "out" / "checkpoints").newest_first()[0]
    assert f"{newest} is safe" in result.stderr
    assert newest.name == f"step-{int(said[2]) - 1:09}.checkpoint", "the last one with finite weights"
    assert not (tmp_path / "out" / "weights.pt").exists()


@pytest.mark.parametrize("engine", ["autograd", "document"])
@pytest.mark.parametrize("where, words", [
    ("dense2.weight", "dense2.weight, 1 of 65,536 values, the first nan at [0, 1]"),
    ("conv1.bias", "conv1.bias, 1 of 32 values, the first nan at [0]"),
])  # fmt: skip
def test_the_first_tensor_that_is_not_finite_is_named(common, monkeypatch, engine, where, words):
    original = command.Run.take_step

    def poisoned(self):
        if self.step == 12:
            with torch.no_grad():
                dict(self.model.named_parameters())[where].view(-1)[1 if "weight" in where else 0] = torch.nan
        return original(self)

    monkeypatch.setattr(command.Run, "take_step", poisoned)
    result = train(*common, "--engine", engine)
    assert result.returncode == 1
    assert f"the cost is nan at step 3 of epoch 2: not finite is first {words}" in result.stderr


def test_the_order_of_the_search():
    model = mg.DocumentCNN(channels=(2,), hidden=(3,))
    x = torch.randn(2, 1, 28, 28)
    model.cost(x, torch.tensor([1, 2])).backward()
    search = lambda: nonfinite.first_nonfinite(nonfinite.tensors_of_a_step(model, x))  # noqa: E731
    assert search() is None
    model.conv0.weight.grad[0, 0, 0, 0] = torch.inf
    assert search().startswith("the gradient of conv0.weight, 1 of 50 values, the first inf")
    model.dense2.bias.grad[3] = -torch.inf
    assert search().startswith("the gradient of dense2.bias, 1 of 10 values, the first -inf at [3]")
    nn.init.constant_(model.dense1.weight, 3e38)
    assert search().startswith("the output of dense1")
    x[1, 0, 2, 3] = torch.nan
    assert search() == "the input, 1 of 1,568 values, the first nan at [1, 0, 2, 3]"


@pytest.mark.parametrize("ask", [
    lambda self: torch.empty(1 << 60, dtype=torch.uint8),
    lambda self: np.empty(1 << 60, dtype=np.uint8),
], ids=["torch", "numpy"])  # fmt: skip
def test_out_of_memory_is_said(common, monkeypatch, ask):
    monkeypatch.setattr(command.Run, "take_step", ask)
    result = train(*common)
    assert result.returncode == 1
    assert "out of memory: try a smaller --batch-size" in result.stderr and "Traceback" not in result.stderr


def test_an_error_of_the_program_keeps_its_traceback(common, monkeypatch):
    def broken(self):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(command.Run, "take_step", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        train(*common)


# Watching a run


def test_a_line_for_every_step_is_there_as_soon_as_the_step_is(common, tmp_path, monkeypatch):
    seen = []
    at_step(monkeypatch, 13, lambda: seen.extend(lines(tmp_path / "out")))
    assert train(*common).returncode == 0
    assert seen[0]["event"] == "start" and seen[0]["step"] == 0 and seen[0]["steps"] == 20
    assert [line["step"] for line in seen if "images" in line] == list(range(1, 14))
    assert {"cost", "images", "right", "learning_rate"} < seen[-1].keys()
    (epoch,) = [line for line in seen if "test_accuracy" in line]
    assert epoch["step"] == 10 and epoch["epoch"] == 1


def test_lines_go_on_where_the_run_does(common, tmp_path, untouched, monkeypatch):
    """What was written after the checkpoint, and what a kill cut in two, is gone; every step has one line."""
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
                            for line in lines(untouched) if line.get("event") is None]  # fmt: skip
    assert [line["step"] for line in lines(tmp_path / "out") if line.get("event") == "start"] == [0, 7]


def test_tensorboard_has_every_step(untouched):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(untouched / "events"))
    events.Reload()
    tags = {"cost/training", "learning rate", "cost/test", "accuracy/training", "accuracy/test"}
    assert set(events.Tags()["scalars"]) == tags
    costs = [(line["step"], line["cost"]) for line in lines(untouched) if "images" in line]
    found = [(event.step, event.value) for event in events.Scalars("cost/training")]
    assert [step for step, _ in found] == [step for step, _ in costs]
    assert [value for _, value in found] == pytest.approx([cost for _, cost in costs])
    assert [event.step for event in events.Scalars("accuracy/test")] == [10, 20]


def test_without_tensorboard_the_extra_is_named(common, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    result = train(*common, "--log-dir", tmp_path / "events")
    assert result.returncode == 2
    assert 'not installed: pip install "manualgrad[tensorboard]"' in result.stderr
    assert not (tmp_path / "events").exists()


# The page


def test_every_test_that_the_page_names_exists():
    """Each row of the table names what shows it, as file::test, and the table has no row without."""
    page = (ROOT / "docs" / "reliability.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ") and "---" not in line][1:]
    assert len(rows) > 20
    for row in rows:
        named = re.findall(r"`(tests/\w+\.py)::([\w:]+)`", row.split("|")[3])
        assert named, f"no test is named by: {row}"
        for file, test in named:
            tree = ast.parse((ROOT / file).read_text())
            there = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
            assert set(test.split("::")) <= there, f"{file} has no {test}"
