"""Promise: several processes train the same network as one, and losing a process costs no more than a few steps."""

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
from manualgrad.training.batches import minibatches, normalize
from manualgrad.training.cli_exit import CliExit
from manualgrad.training.distributed import SINGLE_PROCESS, DistributedContext, init_distributed
from manualgrad.training.evaluation import evaluate
from manualgrad.training.rendezvous import rendezvous
from tests.training.command_line import train

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("num_images", [1, 3, 12, 50])
def test_shards_have_every_image_once(world_size, num_images):
    split = data.Split(torch.zeros(num_images, 1, 1, 1, dtype=torch.uint8), torch.arange(num_images))
    dataset = replace(data.bundled_sample(), train=split)
    indices = torch.randperm(num_images, generator=torch.Generator().manual_seed(1))

    def labels_of(distributed: DistributedContext) -> list[torch.Tensor]:
        return [labels for _, labels in minibatches(dataset, indices, 8, shard=distributed.shard)]

    labels_by_rank = [labels_of(DistributedContext(rank, world_size)) for rank in range(world_size)]
    for batch, *shards in zip(labels_of(SINGLE_PROCESS), *labels_by_rank, strict=True):
        assert torch.equal(torch.cat(shards), batch)
        assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_all_world_sizes_end_with_the_same_parameters():
    """2 and 4 processes over gloo, and 4 that resume a run of 2; both engines, float64, 50 steps, to 1e-12."""
    result = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "compare_world_sizes.py")],
        capture_output=True, text=True, timeout=500, check=False, env=ENVIRONMENT,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    line = r"(\w+) +(2|4|2, then 4) and 1 processes, .* changed by up to ([\d.]+) and differ by at most (\S+)"
    rows = re.findall(line, result.stdout)
    assert [(engine, world_sizes) for engine, world_sizes, *_ in rows] == [
        (engine, world_sizes) for engine in ("autograd", "document") for world_sizes in ("2", "4", "2, then 4")
    ]
    assert all(float(change) > 0.1 and float(difference) <= 1e-12 for _, _, change, difference in rows)


def test_shards_of_unequal_size_need_weights():
    """The mean of the shards' mean gradients is another gradient, so the comparison above can fail."""
    dataset = data.bundled_sample().limited(31)
    x, labels = normalize(dataset.train.images, dataset, torch.float64), dataset.train.labels
    model = mg.DocumentCNN(dtype=torch.float64)

    def gradient(indices: torch.Tensor) -> torch.Tensor:
        (grad,) = torch.autograd.grad(model.cost(x[indices], labels[indices]), [model.dense3.bias])
        return grad

    shards = [DistributedContext(rank, 4).shard(torch.arange(31)) for rank in range(4)]
    expected = gradient(torch.arange(31))
    weighted_mean = sum(gradient(shard) * len(shard) / 31 for shard in shards)
    assert (weighted_mean - expected).abs().max() < 1e-15
    assert (sum(map(gradient, shards)) / 4 - expected).abs().max() > 1e-4


def test_without_torchrun_there_is_no_process_group(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with init_distributed(cuda=False) as distributed:
        assert distributed is SINGLE_PROCESS and not torch.distributed.is_initialized()
    assert distributed.run_on_rank0(lambda: 3) == distributed.run_local_rank0_first(lambda: 3) == 3


def test_an_incomplete_torchrun_environment_is_an_error(monkeypatch, tmp_path):
    """Some job schedulers set WORLD_SIZE for all processes."""
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    result = train("--out", tmp_path)
    assert result.returncode == 2
    assert "MASTER_ADDR" in result.stderr and "start several processes with torchrun" in result.stderr


@pytest.mark.parametrize(("local_rank", "local_world_size", "message"), [
    ("0", "2", "2 processes on this machine need as many CUDA devices, and PyTorch finds 1"),
    ("1", "2", ""),  # the first process prints the message
    ("1", None, "2 processes on this machine"),
])  # fmt: skip
def test_more_processes_than_devices_are_an_error(monkeypatch, local_rank, local_world_size, message):
    for name, value in (TORCHRUN | {"RANK": local_rank, "LOCAL_RANK": local_rank}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if local_world_size:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local_world_size)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(CliExit) as caught, init_distributed(cuda=True):
        pass
    assert caught.value.code == 2 and message in caught.value.message
    assert bool(caught.value.message) == bool(message) and "\n" not in caught.value.message


TORCHRUN = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize("name, value, expected", [
    ("WORLD_SIZE", "abc", "whole number at least 1"),
    ("WORLD_SIZE", "0", "whole number at least 1"),
    ("RANK", "7", "whole number from 0 to 1"),
    ("RANK", "-1", "whole number from 0 to 1"),
    ("LOCAL_RANK", "x", "whole number from 0 to 1"),
    ("MASTER_PORT", "99999", "whole number from 1 to 65535"),
])  # fmt: skip
def test_a_wrong_variable_of_torchrun_is_an_error_at_once(monkeypatch, tmp_path, name, value, expected):
    for variable in TORCHRUN:
        monkeypatch.setenv(variable, TORCHRUN[variable] if variable != name else value)
    result = train("--out", tmp_path / "out")
    assert result.returncode == 2
    assert f"train.py: error: {name} is {value!r}, expected a {expected}: start" in result.stderr
    assert result.stderr.count("\n") == 1 and not (tmp_path / "out").exists()


def test_the_evaluations_of_all_shards_sum_to_the_whole_result(monkeypatch):
    """Each rank fills in the predictions of its shard, and the sum over all ranks has all predictions."""
    dataset, model = data.bundled_sample().limited(10), mg.DocumentCNN()
    split = dataset.test.first(301)
    expected = evaluate(model, split, dataset)
    monkeypatch.setattr(DistributedContext, "all_reduce_sum", lambda self, tensor: tensor)
    shards = [evaluate(model, split, dataset, DistributedContext(rank, 4)) for rank in range(4)]
    assert torch.equal(sum(shard.predicted for shard in shards), expected.predicted)
    assert sum(shard.loss for shard in shards) == pytest.approx(expected.loss, rel=1e-6)


def test_an_early_rank_does_not_connect_to_an_earlier_start():
    """The store still has all keys that the same ranks set in the earlier start."""
    store = dist.HashStore()
    with ThreadPoolExecutor(3) as threads:
        earlier = [threads.submit(rendezvous, store, rank, 3, timedelta(seconds=20)) for rank in range(3)]
        earlier[0].result().set("start", "earlier")
        assert [future.result().get("start") for future in earlier] == [b"earlier"] * 3
        others = [threads.submit(rendezvous, store, rank, 3, timedelta(seconds=20)) for rank in (1, 2)]
        time.sleep(0.3)
        assert not any(future.done() for future in others)
        rank0 = rendezvous(store, 0, 3, timedelta(seconds=20))
        rank0.set("start", "current")
        assert [future.result().get("start") for future in others] == [b"current"] * 2
    with pytest.raises(dist.DistStoreError, match="no answer from rank 0"):
        rendezvous(store, 1, 3, timedelta(seconds=0.2))


def children(parent: int) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the process ids of the children of ``parent``, with their environments."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = status.read_text().rpartition(")")[2].split()
            variables = (status.parent / "environ").read_text().split("\0")
        except OSError:  # the process has ended
            continue
        if int(after_name[1]) == parent:
            yield int(status.parent.name), dict(pair.split("=", 1) for pair in variables if "=" in pair)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds torchrun's processes under Linux's /proc")
def test_a_lost_process_ends_the_run_and_torchrun_resumes_it(digits, tmp_path, request):
    common = ("--dataset", "fashion-mnist", "--data-dir", digits, "--limit", 600, "--batch-size", 15, "--epochs", 2,
              "--schedule", "constant", "--learning-rate", 0.01)  # fmt: skip
    out = tmp_path / "ddp"
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--max-restarts=1",
        str(ROOT / "train.py"), *map(str, common), "--out", str(out), "--checkpoint-every", "5", "--resume", "auto",
        "--engine", "document",  # DistributedDataParallel would import torch._dynamo in each of the four processes
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

    printed, errors = (tmp_path / "stdout").read_text(), (tmp_path / "stderr").read_text()
    assert "train.py: rank 0 of 2 lost the connection to another rank" in errors
    assert "is complete: continue from it with --resume auto" in errors
    assert printed.count("on 2 processes") == 2, "only rank 0 of each start prints"
    assert printed.count("test images are misclassified") == 1
    steps = [json.loads(line)["step"] for line in lines.read_text().splitlines() if '"event"' not in line]
    assert list(dict.fromkeys(steps)) == list(range(1, 81)), "every step has a line"
    resumed_at = int(re.search(r"resume  after step (\d+) of 80", printed)[1])
    assert resumed_at >= 5

    # One process resumes the run of two processes from the last checkpoint but one.
    checkpoint = sorted((out / "checkpoints").iterdir())[-2]
    assert train(*common, "--out", tmp_path / "resumed", "--resume", checkpoint).returncode == 0
    assert train(*common, "--out", tmp_path / "single").returncode == 0
    two_processes, resumed, single = (
        torch.load(tmp_path / name / "weights.pt", weights_only=True) for name in ("ddp", "resumed", "single")
    )
    for name in single:  # float32 sums in another order; a repeated or missing batch changes weights by 1e-4 and more
        torch.testing.assert_close(two_processes[name], single[name], rtol=0, atol=2e-6)
        torch.testing.assert_close(resumed[name], single[name], rtol=0, atol=2e-6)
