"""Promise: a run on a CUDA device takes the CPU's steps, in graphs or without, and is resumed with its bits."""

from __future__ import annotations

import functools
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest
import torch

from manualgrad import DocumentCNN, data, kernels
from manualgrad.training import command, device_steps, recipes, run_setup
from manualgrad.training.device_steps import DeviceSteps
from manualgrad.training.distributed import DistributedContext
from manualgrad.training.epochs import EpochLayout
from manualgrad.training.nonfinite import NonFiniteError
from manualgrad.training.optimizers import GradientDescent, make_lr_scheduler
from manualgrad.training.options import parse_arguments
from manualgrad.training.run import TrainingRun
from tests.cuda.test_network import COARSE, tiles  # noqa: F401
from tests.training.command_line import train, write_digits
from tests.training.test_reliability import at_step, same_weights

ROOT = Path(__file__).parents[2]
bundled_sample = functools.cache(data.bundled_sample)  # it takes a third of a second to read
MOMENTUM = partial(torch.optim.SGD, momentum=0.9)
OPTIONS = ("--crop", "12", "--channels", "3", "--hidden", "--batch-size", "4", "--epochs", "2")
STEP = ["gather_batch", "prepare", "conv_relu_pool_forward", "dense_forward", "softmax_cross_entropy_rows",
        "dense_grad_input", "backward", "reduce", "descend"]  # fmt: skip


@pytest.fixture
def cuda(tiles, kernel_device, monkeypatch) -> str:  # noqa: F811
    """The device of the kernels, with 3 steps in a graph and tiles that the interpreter computes in little time."""
    tiles["tiles"] = replace(COARSE, image_windows=64, positions=64)
    monkeypatch.setattr(device_steps, "STEPS_PER_GRAPH", 3)
    return kernel_device


def make_run(
    device: str = "cpu", optimizer=GradientDescent, *, num_images: int = 10, epochs: int = 1, shares=(1.0,),
    rate: float = 0.1, dtype: torch.dtype = torch.float32, **options,
) -> TrainingRun:  # fmt: skip
    """A run with batches of 4 images of 12×12 pixels."""
    torch.manual_seed(0)
    dataset = bundled_sample().limited(num_images).center_crop(12).to(device)
    model = DocumentCNN(image_size=12, channels=(3,), hidden=()).to(device, dtype)
    layout, sgd = EpochLayout(num_images, 4, epochs, shares), optimizer(model.parameters(), lr=rate)
    schedule = make_lr_scheduler("one-cycle", sgd, layout.num_steps)
    return TrainingRun(model, sgd, schedule, dataset, epochs=layout, seed=0, **options)


def finish(run: TrainingRun, at_most: int = 100) -> list:
    """Take the steps that are left; return the metrics of each call."""
    calls = []
    while not run.is_finished:
        calls.append(run.train_steps(at_most))
        if run.step_in_epoch == 0:
            run.begin_epoch()
    return calls


def weights(run: TrainingRun) -> list[torch.Tensor]:
    return [w.detach().cpu().clone() for w in run.model.parameters()]


@pytest.mark.parametrize(
    ("optimizer", "options", "steps"),
    [
        (MOMENTUM, {"epochs": 2, "shares": (1.0, 0.4), "average_last": 2}, [3, 1]),
        pytest.param(GradientDescent, {"num_images": 6}, [2], marks=pytest.mark.slow),
    ],
)
def test_the_steps_are_those_of_a_run_in_float64(cuda, launches, optimizer, options, steps):
    """A batch of two images at the end of the first epoch, images that the network predicts poorly in the second."""
    exact = make_run("cpu", optimizer, dtype=torch.float64, **options)
    expected = [step for call in finish(exact) for step in call]
    launches.clear()
    run = make_run(cuda, optimizer, **options)
    run.run_warmup_step()
    launches.clear()
    order = torch.randperm(options.get("num_images", 10), generator=torch.Generator().manual_seed(0))
    assert torch.equal(run.epoch_indices.cpu(), order), "the CPU's order"
    calls = finish(run)
    assert [len(call) for call in calls] == steps
    assert launches == STEP * sum(steps)
    for actual, reference in zip([step for call in calls for step in call], expected, strict=True):
        assert actual.loss == pytest.approx(reference.loss, rel=1e-5)
        assert replace(actual, loss=0) == replace(reference, loss=0)
    for actual, reference in zip(weights(run), weights(exact), strict=True):
        torch.testing.assert_close(actual.double(), reference, rtol=1e-5, atol=1e-6)  # rounding of 4 steps in float32
    assert run.num_correct == exact.num_correct
    assert run.optimizer.param_groups[0]["lr"] == exact.optimizer.param_groups[0]["lr"]
    assert run.scheduler.state_dict() == exact.scheduler.state_dict()
    torch.testing.assert_close(run.sampler.label_probs.cpu(), exact.sampler.label_probs, rtol=1e-4, atol=1e-6)
    for w, v in zip(run.model.parameters(), exact.model.parameters(), strict=True):
        momenta = [state.get("momentum_buffer") for state in (run.optimizer.state[w], exact.optimizer.state[v])]
        assert (momenta[0] is None) == (optimizer is GradientDescent)
        if momenta[0] is not None:
            torch.testing.assert_close(momenta[0].cpu().double(), momenta[1], rtol=1e-4, atol=1e-6)


def test_a_graph_of_steps_has_the_bits_of_single_steps_and_of_single_launches(cuda):
    results = []
    for at_most, cuda_graphs in ((100, True), (1, True), (100, False)):
        run = make_run(cuda, MOMENTUM, num_images=6, average_last=1, cuda_graphs=cuda_graphs)
        metrics = [step for call in finish(run, at_most) for step in call]
        results.append((metrics, weights(run)))
    (first, first_weights), *others = results
    for metrics, others_weights in others:
        assert metrics == first
        assert all(map(torch.equal, others_weights, first_weights))


def test_no_step_updates_after_a_cost_that_is_not_finite(cuda):
    run, one_step = (make_run(cuda, rate=1e30, num_images=8) for _ in range(2))
    assert len(run.train_steps(100)) == 1
    one_step.train_steps(1)
    assert all(map(torch.equal, weights(run), weights(one_step)))
    assert run.optimizer.param_groups[0]["lr"] == one_step.optimizer.param_groups[0]["lr"]
    with pytest.raises(NonFiniteError, match=r"at step 2 of epoch 1; the first non-finite tensor is the output of"):
        run.train_steps(100)
    assert all(map(torch.equal, weights(run), weights(one_step)))


def test_other_steps_are_taken_one_by_one_with_a_reason(cuda):
    def reason(**options) -> str:
        return str(make_run(cuda, **options).device_steps)

    assert reason(optimizer=torch.optim.Adam) == "the optimizer does not update every weight by gradient descent"
    assert "gradient descent" in reason(optimizer=partial(MOMENTUM, nesterov=True))
    assert "float32" in reason(dtype=torch.float64) or cuda == "cpu"  # nothing is said on the CPU


class Ranks:
    """Ranks that are threads. One runs at a time, since Triton's interpreter serves one; they take turns at sums."""

    def __init__(self, world_size: int) -> None:
        self.world_size, self.turn, self.barrier = world_size, threading.Lock(), threading.Barrier(world_size)
        self.sums: dict[int, torch.Tensor] = {}

    def results(self, work) -> list:
        """``work(context)`` of each rank."""
        with ThreadPoolExecutor(self.world_size) as pool:
            return list(pool.map(lambda rank: self._run(work, rank), range(self.world_size)))

    def _run(self, work, rank: int):
        with self.turn:
            return work(Rank(rank, self.world_size, ranks=self))


@dataclass(frozen=True)
class Rank(DistributedContext):
    """A rank of :class:`Ranks`."""

    ranks: Ranks | None = None
    counter: Iterator[int] = field(default_factory=itertools.count)

    def all_reduce_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        number, ranks = next(self.counter), self.ranks
        ranks.sums[number] = ranks.sums.get(number, 0) + tensor
        ranks.turn.release()
        try:
            ranks.barrier.wait(60)
        finally:
            ranks.turn.acquire()
        return tensor.copy_(ranks.sums[number])


@pytest.mark.parametrize("use_graphs", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_two_ranks_take_the_steps_of_one_process(cuda, launches, use_graphs):
    """A last batch of one image leaves the second rank none; an epoch of a part of the images needs all ranks'."""
    options = {"num_images": 5, "epochs": 2, "shares": (1.0, 0.4), "average_last": 2}
    exact = make_run("cpu", MOMENTUM, dtype=torch.float64, **options)
    expected = [step for call in finish(exact) for step in call]

    def train(context: Rank):
        run = make_run(cuda, MOMENTUM, engine="document", distributed=context, cuda_graphs=use_graphs, **options)
        run.run_warmup_step()
        return run, [step for call in finish(run) for step in call]

    (run, metrics), (other_run, others_metrics) = Ranks(2).results(train)
    assert launches.count("weigh_shard") == launches.count("descend") >= 2 * len(expected)
    assert metrics == others_metrics
    assert all(map(torch.equal, weights(run), weights(other_run)))
    for actual, reference in zip(metrics, expected, strict=True):
        assert actual.loss == pytest.approx(reference.loss, rel=1e-5)
        assert replace(actual, loss=0) == replace(reference, loss=0)
    for actual, reference in zip(weights(run), weights(exact), strict=True):
        torch.testing.assert_close(actual.double(), reference, rtol=1e-5, atol=1e-6)  # rounding of 3 steps in float32
    torch.testing.assert_close(run.sampler.label_probs.cpu(), exact.sampler.label_probs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("num_images", "world_size"), [(12, 1), (10, 1), (3, 1), (10, 3), (3, 2), (1, 2)])
def test_shards_of_all_ranks_are_the_batches(num_images, world_size):
    batch_size = min(4, num_images)
    width = -(-batch_size // world_size)
    order = torch.randperm(num_images)
    shards = [
        device_steps.shard_batches(order, 4, width, DistributedContext(rank, world_size).shard)
        for rank in range(world_size)
    ]
    for n, batch in enumerate(torch.split(order, 4)):
        rows = [indices[n] for indices, _ in shards]
        assert torch.equal(torch.cat([row[row >= 0] for row in rows]), batch)
        for row, (_, fractions) in zip(rows, shards, strict=True):
            assert fractions[n] == torch.tensor(int((row >= 0).sum()) / len(batch))


@pytest.mark.slow
def test_a_change_of_the_model_takes_effect_at_the_next_steps(cuda):
    run, calls = make_run(cuda), []
    assert isinstance(run.device_steps, DeviceSteps)
    handle = run.model.conv0.register_forward_hook(lambda *_: calls.append(1))
    assert len(run.train_steps(100)) == len(calls) == 1
    handle.remove()
    run.model.conv0.weight.requires_grad_(False)
    before = run.model.conv0.weight.clone()
    assert len(run.train_steps(100)) == 1
    assert torch.equal(run.model.conv0.weight, before)
    run.model.conv0.weight.requires_grad_(True)
    assert len(run.train_steps(100)) == 1, "one is left in the epoch"


# ------------------------------------------------------------------------------------------------------ train.py


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
