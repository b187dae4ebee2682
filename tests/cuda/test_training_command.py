"""Promise: ``train.py`` on a CUDA device answers signals, ends with the CPU's messages, and resumes with its bits."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from manualgrad import kernels
from manualgrad.training import command, device_steps, recipes, run_setup
from manualgrad.training.options import parse_arguments
from tests.cuda.test_network import tiles  # noqa: F401
from tests.cuda.training_runs import bundled_sample, cuda_device  # noqa: F401
from tests.training.command_line import train, write_digits
from tests.training.test_reliability import at_step, same_weights

ROOT = Path(__file__).parents[2]
OPTIONS = ("--crop", "12", "--channels", "3", "--hidden", "--batch-size", "4", "--epochs", "2")


@pytest.fixture
def small(monkeypatch, tmp_path, cuda) -> tuple:
    """Options of a run of 3 + 2 steps, with 3 test images and no plots."""
    sample = bundled_sample()
    dataset = replace(sample.limited(10), test=sample.test.first(3))
    monkeypatch.setattr(run_setup.data, "load", lambda *_, **__: dataset)
    monkeypatch.setattr(command.extras, "find_import_problem", lambda *_: "the tests draw no plots")
    monkeypatch.setattr(device_steps, "STEPS_PER_GRAPH", 2)
    subsets = ("--shares", "1", "0.6", "--average", "0.4", "--optimizer", "momentum")
    return (*OPTIONS, *subsets, "--device", cuda, "--out", tmp_path / "out")


def test_a_signal_is_answered_after_the_graph_and_the_resumed_run_has_the_same_bits(small, monkeypatch, tmp_path):
    finished = train(*small, "--out", tmp_path / "uninterrupted", "--no-cuda-graphs")
    assert finished.returncode == 0, finished.stderr
    assert "device  steps on the device, 2 at a time, without CUDA graphs" in finished.stdout
    with monkeypatch.context() as patch:
        at_step(patch, 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
        stopped = train(*small)
    assert stopped.returncode == 143
    assert "SIGTERM: stopped after step 2 of 5" in stopped.stderr
    assert (tmp_path / "out" / "checkpoints" / "step-000000002.checkpoint").exists()
    resumed = train(*small, "--resume", "auto", "--checkpoint-every", 4)
    assert resumed.returncode == 0, resumed.stderr
    assert "device  steps on the device, 2 in a CUDA graph" in resumed.stdout
    assert same_weights(tmp_path / "out", tmp_path / "uninterrupted")
    names = sorted(path.name for path in (tmp_path / "out" / "checkpoints").iterdir())
    assert names == [f"step-{step:09}.checkpoint" for step in (2, 4, 5)], "saved after the steps that are due"
    losses = [
        json.loads((tmp_path / name / "metrics.json").read_text())["losses"] for name in ("out", "uninterrupted")
    ]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_the_message_for_a_loss_that_is_not_finite_is_that_of_the_cpu(small, tmp_path):
    messages = []
    for choice in ("auto", "off"):
        kernels.choose(choice)
        failed = train(*small, "--learning-rate", "1e30", "--out", tmp_path / choice)
        assert failed.returncode == 1
        messages.append(failed.stderr)
        assert len((tmp_path / choice / "metrics.jsonl").read_text().splitlines()) == 2, "the start and one step"
    assert "the loss is" in messages[0]
    assert re.sub(r"first .* at index", "", messages[0]) == re.sub(r"first .* at index", "", messages[1])


@pytest.mark.slow  # starts two processes
def test_a_killed_run_is_resumed_with_the_same_bits(tmp_path):
    """SIGKILL between the steps of a graph and the checkpoint after them: the next run starts at the one before."""
    program = (
        "import os, sys\n"
        "import manualgrad.training.command as command\n"
        "from manualgrad.network import cuda_plan\n"
        "from manualgrad.network.planners import PLANNERS\n"
        "from manualgrad.training import device_steps\n"
        "device_steps.STEPS_PER_GRAPH = 2\n"
        "if not __import__('torch').cuda.is_available():\n"
        "    from tests.cuda.test_network import COARSE, cuda_blocks\n"
        "    cuda_blocks.tiles_for = lambda _: COARSE\n"
        "    PLANNERS['cpu'] = cuda_plan.get_plan\n"
        "finish_steps, kill_at = command.TrainingRun._finish_steps, int(sys.argv[1])\n"
        "def finish(self, *arguments):\n"
        "    finish_steps(self, *arguments)\n"
        "    if self.step == kill_at:\n"
        "        os.kill(os.getpid(), 9)\n"
        "command.TrainingRun._finish_steps = finish\n"
        "evaluate = command.evaluate\n"
        "command.evaluate = lambda model, split, *rest: evaluate(model, split.first(4), *rest)\n"
        "raise SystemExit(command.main(sys.argv[2:]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def start(kill_at: int, out: str, *options: str) -> subprocess.CompletedProcess:
        arguments = (*OPTIONS, "--limit", "10", "--checkpoint-every", "1", "--out", str(tmp_path / out), *options)
        command = [sys.executable, "-c", program, str(kill_at), "--data-dir", str(tmp_path), *arguments]
        command += ["--dataset", "fashion-mnist"]
        return subprocess.run(command, capture_output=True, text=True, timeout=500, check=False, env=environment)

    write_digits(tmp_path)
    uninterrupted = start(0, "uninterrupted")
    assert uninterrupted.returncode == 0, uninterrupted.stderr
    assert start(5, "out").returncode == -signal.SIGKILL
    assert max(os.listdir(tmp_path / "out" / "checkpoints")) == "step-000000004.checkpoint"
    resumed = start(0, "out", "--resume", "auto")
    assert resumed.returncode == 0, resumed.stderr
    assert "resume  after step 4 of 6" in resumed.stdout
    assert same_weights(tmp_path / "out", tmp_path / "uninterrupted")


def test_the_fast_recipe_has_other_settings_on_cuda(monkeypatch):
    def parse(*arguments: str):
        return parse_arguments(["--recipe", "fast", *arguments])

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    options = parse()
    assert (options.optimizer, options.batch_size, options.crop, options.hidden) == ("momentum", 256, None, (128,))
    assert recipes.describe(options) == "fast on CUDA"
    assert recipes.describe(parse("--device", "cpu")) == "fast"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert parse().batch_size == 64
