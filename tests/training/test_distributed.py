"""Promise: several processes train the network that one would, and the loss of one loses no more than a few steps."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import distributed as dist

import manualgrad as mg
from manualgrad import data
from manualgrad.training.distributed import ALONE, Processes, joined
from manualgrad.training.meeting import meet
from manualgrad.training.steps import examine, minibatches, normalised
from tests.training.command_line import train

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("images", [1, 3, 12, 50])
def test_shares_have_every_image_once(count, images):
    split = data.Split(torch.zeros(images, 1, 1, 1, dtype=torch.uint8), torch.arange(images))
    dataset = replace(data.bundled_sample(), train=split)
    order = torch.randperm(images, generator=torch.Generator().manual_seed(1))

    def labels_of(processes: Processes) -> list[torch.Tensor]:
        return [labels for _, labels in minibatches(dataset, order, 8, share=processes.share)]

    shares = [labels_of(Processes(rank, count)) for rank in range(count)]
    for batch, *parts in zip(labels_of(ALONE), *shares, strict=True):
        assert torch.equal(torch.cat(parts), batch)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_one_and_many_end_with_the_same_parameters():
    """2 and 4 processes over gloo, and 2 whose run 4 take up; both engines, float64, 50 steps, to 1e-12."""
    result = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "one_and_many.py")],
        capture_output=True, text=True, timeout=500, check=False, env=ENVIRONMENT,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    line = r"(\w+) +(2|4|2, then 4) processes .* moved by up to ([\d.]+), and differ by at most (\S+)"
    found = re.findall(line, result.stdout)
    assert [(engine, counts) for engine, counts, *_ in found] == [
        (engine, counts) for engine in ("autograd", "document") for counts in ("2", "4", "2, then 4")
    ]
    assert all(float(moved) > 0.1 and float(difference) <= 1e-12 for _, _, moved, difference in found)


def test_unequal_shares_have_to_be_weighed():
    """The mean of the shares' means is another gradient: what the comparison above would notice."""
    dataset = data.bundled_sample().limited(31)
    x, labels = normalised(dataset.train.images, dataset, torch.float64), dataset.train.labels
    model = mg.DocumentCNN(dtype=torch.float64)

    def gradient(part: torch.Tensor) -> torch.Tensor:
        (found,) = torch.autograd.grad(model.cost(x[part], labels[part]), [model.dense3.bias])
        return found

    parts = [Processes(rank, 4).share(torch.arange(31)) for rank in range(4)]
    whole = gradient(torch.arange(31))
    weighed = sum(gradient(part) * len(part) / 31 for part in parts)
    assert (weighed - whole).abs().max() < 1e-15
    assert (sum(map(gradient, parts)) / 4 - whole).abs().max() > 1e-4


def test_alone_nothing_is_joined(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with joined(cuda=False) as processes:
        assert processes is ALONE and not torch.distributed.is_initialized()
    assert processes.from_first(lambda: 3) == processes.one_after_the_other(lambda: 3) == 3


def test_half_an_environment_is_explained(monkeypatch, tmp_path):
    """Some schedulers set WORLD_SIZE for everything that they start."""
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    result = train("--out", tmp_path)
    assert result.returncode == 2
    assert "MASTER_ADDR" in result.stderr and "start them with torchrun" in result.stderr


def test_parts_of_the_test_images_make_the_whole_verdict(monkeypatch):
    """Each process fills in its part of the predictions, and the sum over processes is all of them."""
    dataset, model = data.bundled_sample().limited(10), mg.DocumentCNN()
    split = dataset.test.first(301)
    alone = examine(model, split, dataset)
    monkeypatch.setattr(Processes, "add_up", lambda self, tensor: tensor)
    parts = [examine(model, split, dataset, Processes(rank, 4)) for rank in range(4)]
    assert torch.equal(sum(part.predicted for part in parts), alone.predicted)
    assert sum(part.cost for part in parts) == pytest.approx(alone.cost, rel=1e-6)


def test_whoever_comes_early_does_not_meet_the_dead():
    """Of an earlier start, with the same ranks, the store still holds everything."""
    store = dist.HashStore()
    with ThreadPoolExecutor(3) as threads:
        earlier = [threads.submit(meet, store, rank, 3, timedelta(seconds=20)) for rank in range(3)]
        earlier[0].result().set("who", "the dead")
        assert [one.result().get("who") for one in earlier] == [b"the dead"] * 3
        others = [threads.submit(meet, store, rank, 3, timedelta(seconds=20)) for rank in (1, 2)]
        time.sleep(0.3)
        assert not any(one.done() for one in others)
        first = meet(store, 0, 3, timedelta(seconds=20))
        first.set("who", "the living")
        assert [one.result().get("who") for one in others] == [b"the living"] * 2
    with pytest.raises(dist.DistStoreError, match="met no process 0"):
        meet(store, 1, 3, timedelta(seconds=0.2))


def children(parent: int) -> Iterator[tuple[int, dict[str, str]]]:
    """The processes that ``parent`` started, with their environments."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = status.read_text().rpartition(")")[2].split()
            variables = (status.parent / "environ").read_text().split("\0")
        except OSError:  # it has ended in the meantime
            continue
        if int(after_name[1]) == parent:
            yield int(status.parent.name), dict(pair.split("=", 1) for pair in variables if "=" in pair)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds torchrun's processes under Linux's /proc")
def test_a_lost_process_ends_the_run_and_torchrun_takes_it_up(digits, tmp_path, request):
    common = ("--dataset", "fashion-mnist", "--data-dir", digits, "--limit", 600, "--batch-size", 15, "--epochs", 2,
              "--schedule", "constant", "--learning-rate", 0.01)  # fmt: skip
    out = tmp_path / "many"
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--max-restarts=1",
        str(ROOT / "train.py"), *map(str, common), "--out", str(out), "--checkpoint-every", "5", "--resume", "auto",
    ]  # fmt: skip
    with (tmp_path / "stdout").open("w") as stdout, (tmp_path / "stderr").open("w") as stderr:
        torchrun = subprocess.Popen(command, stdout=stdout, stderr=stderr, env=ENVIRONMENT)
    request.addfinalizer(torchrun.kill)
    lines = out / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not (lines.exists() and lines.read_text().count("\n") > 8):
        assert torchrun.poll() is None and time.monotonic() < deadline, (tmp_path / "stderr").read_text()
        time.sleep(0.005)
    (victim,) = [pid for pid, variables in children(torchrun.pid) if variables.get("LOCAL_RANK") == "1"]
    os.kill(victim, signal.SIGKILL)
    assert torchrun.wait(timeout=300) == 0, (tmp_path / "stderr").read_text()

    said, complained = (tmp_path / "stdout").read_text(), (tmp_path / "stderr").read_text()
    assert "train.py: process 0 of 2 lost another one" in complained
    assert "is safe; --resume auto goes on from there" in complained
    assert said.count("shared by 2 processes") == 2, "of each start, one process speaks"
    assert said.count("test images are right") == 1
    steps = [json.loads(line)["step"] for line in lines.read_text().splitlines() if '"event"' not in line]
    assert list(dict.fromkeys(steps)) == list(range(1, 81)), "every step has its line"
    taken_up = int(re.search(r"resume  after step (\d+) of 80", said)[1])
    assert taken_up >= 5

    # What two processes began, one takes up: here at the last checkpoint but one, and against one from the start.
    checkpoint = sorted((out / "checkpoints").iterdir())[-2]
    assert train(*common, "--out", tmp_path / "one", "--resume", checkpoint).returncode == 0
    assert train(*common, "--out", tmp_path / "alone").returncode == 0
    many, one, alone = (
        torch.load(tmp_path / name / "weights.pt", weights_only=True) for name in ("many", "one", "alone")
    )
    for name in alone:  # sums of float32 in another order; a batch twice or left out moves weights by 1e-4 and more
        torch.testing.assert_close(many[name], alone[name], rtol=0, atol=2e-6)
        torch.testing.assert_close(one[name], alone[name], rtol=0, atol=2e-6)
