"""Training on one process or on several ranks, with the collective operations that a run needs.

    torchrun --nproc-per-node=4 train.py

The batch of a step is the same for every world size: each rank draws the same image order and takes its shard of each
batch, and the gradients are summed over all ranks. Only rank 0 prints and writes files.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.rendezvous import rendezvous as torchrun_rendezvous
from torch.nn.parallel import DistributedDataParallel

from manualgrad.training.cli_exit import EXIT_FAILURE, CliExit
from manualgrad.training.rendezvous import rendezvous
from manualgrad.training.streams import print_line
from manualgrad.training.torchrun_env import read_torchrun_env, require_device_for_each_process

T = TypeVar("T")

# A rank whose machine lost its power sends nothing, so the others need a timeout. The longest regular wait is for
# rank 0, while it evaluates and writes files.
TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True)
class DistributedContext:
    """This process's rank, and collective operations over all ranks. With one process these do nothing.

    Attributes:
        rank: rank of this process.
        world_size: number of processes.
        local_rank: rank among the processes of this machine.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_rank0(self) -> bool:
        """True on rank 0, and if there is one process."""
        return self.rank == 0

    def shard(self, tensor: Tensor) -> Tensor:
        """Return this rank's shard along dimension 0. The lengths of all shards differ by at most 1."""
        return tensor.tensor_split(self.world_size)[self.rank]

    def gather_shards(self, shard: Tensor, length: int) -> Tensor:
        """Concatenate the shards of all ranks, as :meth:`shard` makes them of a tensor of ``length`` numbers."""
        if self.world_size == 1:
            return shard
        whole = shard.new_zeros(length)
        self.shard(whole).copy_(shard)
        return self.all_reduce_sum(whole)

    def wrap_ddp(self, model: nn.Module) -> nn.Module:
        """Return ``model`` in DistributedDataParallel, whose backward averages gradients over all ranks.

        With one process, return ``model`` itself.
        """
        if self.world_size == 1:
            return model
        # DDP warns because of conv0's one input channel: a dimension of size 1, whose stride has no effect.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        return DistributedDataParallel(model)

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Sum a contiguous tensor over all ranks, in place, and return it."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def all_reduce_sum_number(self, number: float, device: torch.device) -> float:
        """Return the sum of all ranks' numbers. ``device`` is that of the process group, which has float64."""
        if self.world_size == 1:
            return number
        return self.all_reduce_sum(torch.tensor(number, dtype=torch.float64, device=device)).item()

    def all_reduce_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum every ``grad`` over all ranks. The strides of a ``grad`` may differ between ranks."""
        if self.world_size == 1:
            return
        gradients = [(parameter, parameter.grad) for parameter in parameters if parameter.grad is not None]
        flat = self.all_reduce_sum(torch.cat([gradient.reshape(-1) for _, gradient in gradients]))
        parts = torch.split(flat, [gradient.numel() for _, gradient in gradients])
        for (parameter, _), part in zip(gradients, parts, strict=True):
            parameter.grad = part.view_as(parameter)

    def all_reduce_max(self, number: int, device: torch.device) -> int:
        """Return the maximum of all ranks' numbers. ``device`` is that of the process group: "cuda" for NCCL."""
        if self.world_size == 1:
            return number
        numbers = torch.tensor(number, device=device)
        dist.all_reduce(numbers, dist.ReduceOp.MAX)
        return int(numbers)

    def first_not_none(self, value: T | None) -> T | None:
        """Return the value of the lowest rank whose value is not None; None if there is none."""
        if self.world_size == 1:
            return value
        values: list[T | None] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return next((gathered for gathered in values if gathered is not None), None)

    def run_on_rank0(self, work: Callable[[], T]) -> T:
        """Run ``work`` on rank 0 and broadcast its result.

        Raises:
            CliExit: ``work`` raised it. Every rank raises it; the message stays on rank 0.
        """
        if self.world_size == 1:
            return work()
        result: list[Any] = [None, 0]  # the result, and the code of a CliExit
        try:
            if self.is_rank0:
                result[0] = work()
        except CliExit as cli_exit:
            result[1] = cli_exit.code
            raise
        finally:
            dist.broadcast_object_list(result)
        if result[1]:
            raise CliExit(result[1])
        value: T = result[0]
        return value

    def run_local_rank0_first(self, work: Callable[[], T]) -> T:
        """Run ``work`` on every rank, on local rank 0 of each machine first. The others find the files it wrote."""
        if self.local_rank == 0:
            result = work()
        if self.world_size > 1:
            dist.barrier()
        return result if self.local_rank == 0 else work()

    def print_rank0(self, text: str) -> None:
        """Print ``text`` on rank 0."""
        if self.is_rank0:
            print_line(text)


SINGLE_PROCESS = DistributedContext()


@contextmanager
def init_distributed(cuda: bool) -> Iterator[DistributedContext]:
    """Join the process group that torchrun started; without torchrun, yield :data:`SINGLE_PROCESS`.

    Args:
        cuda: use NCCL and the CUDA device with the number of the local rank, in place of gloo.

    Raises:
        CliExit: torchrun's variables are incomplete or wrong, a process has no CUDA device, or the connection to a
            rank fails.
    """
    rank, world_size, local_rank = read_torchrun_env()
    if world_size == 1:
        yield SINGLE_PROCESS
        return
    if cuda:
        require_device_for_each_process(local_rank, torch.cuda.device_count())
        torch.cuda.set_device(local_rank)
    failure = "could not connect to the other ranks"
    try:
        store, *_ = next(torchrun_rendezvous("env://", timeout=TIMEOUT))
        store = rendezvous(store, rank, world_size, TIMEOUT)
        dist.init_process_group(
            "nccl" if cuda else "gloo", store=store, rank=rank, world_size=world_size, timeout=TIMEOUT
        )
        failure = "lost the connection to another rank"
        try:
            yield DistributedContext(rank, world_size, local_rank)
        finally:
            dist.destroy_process_group()
    except RuntimeError as error:
        if not _is_connection_error(error):
            raise
        reason = str(error).splitlines()[0]
        raise CliExit(EXIT_FAILURE, f"rank {rank} of {world_size} {failure}: {reason}") from error


def _is_connection_error(error: RuntimeError) -> bool:
    """Return True if a connection failed. NCCL's and the store's errors have a class, gloo's only a message."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)
