"""Promise: ranks that share each batch on CUDA devices take the steps of one process."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import pytest
import torch

from manualgrad.training import device_steps
from manualgrad.training.distributed import DistributedContext
from tests.cuda.test_network import tiles  # noqa: F401
from tests.cuda.training_runs import MOMENTUM, cuda_device, finish, make_run, weights  # noqa: F401


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
