"""One process, or several that train one network: what each has a share of, and what they tell each other.

    torchrun --nproc-per-node=4 train.py

The batch of a step is one, whoever computes it: every process draws the same order, takes its share of each batch,
and the gradients are added up. Process 0 speaks and writes for all.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from manualgrad.training.endings import FAILED, Ended, fail
from manualgrad.training.meeting import meet

T = TypeVar("T")

# A process whose machine lost its power says nothing. The longest that others wait for good reason is the first
# process's look at the test images, and its writing.
PATIENCE = timedelta(minutes=10)

TOLD = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # by torchrun, to every process


@dataclass(frozen=True)
class Processes:
    """Process ``rank`` of ``count``, and ``local_rank`` of those on this machine."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, chosen: Tensor) -> Tensor:
        """This process's part of ``chosen``: all parts in a row are ``chosen``; lengths differ by at most 1."""
        return chosen.tensor_split(self.count)[self.rank]

    def connected(self, model: nn.Module) -> nn.Module:
        """``model``, whose gradients a backward now averages over all processes; alone, ``model`` itself."""
        if self.count == 1:
            return model
        # It says so of a dimension of size 1, conv0's one input channel, whose stride means nothing.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        return DistributedDataParallel(model)

    def add_up(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place; ``tensor`` is contiguous."""
        if self.count > 1:
            dist.all_reduce(tensor)
        return tensor

    def add_up_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """The sum over all processes in every ``grad``, whatever its strides, which processes need not share."""
        if self.count == 1:
            return
        parameters = list(parameters)
        whole = self.add_up(torch.cat([parameter.grad.reshape(-1) for parameter in parameters]))
        parts = whole.split([parameter.numel() for parameter in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter)

    def largest(self, number: int, device: torch.device) -> int:
        """The largest of all processes' numbers."""
        if self.count == 1:
            return number
        numbers = torch.tensor(number, device=device)
        dist.all_reduce(numbers, dist.ReduceOp.MAX)
        return int(numbers)

    def first_found(self, found: T | None) -> T | None:
        """What the lowest process found that found something."""
        if self.count == 1:
            return found
        everything: list[T | None] = [None] * self.count
        dist.all_gather_object(everything, found)
        return next((one for one in everything if one is not None), None)

    def from_first(self, work: Callable[[], T]) -> T:
        """What ``work`` returns in process 0, where alone it runs. Raises it Ended, all do, the others silently."""
        if self.count == 1:
            return work()
        answer: list[Any] = [None, 0]
        try:
            if self.is_first:
                answer[0] = work()
        except Ended as ending:
            answer[1] = ending.code
            raise
        finally:
            dist.broadcast_object_list(answer)
        if answer[1]:
            raise Ended(answer[1])
        return answer[0]

    def say(self, text: str) -> None:
        """``print``, in process 0."""
        if self.is_first:
            print(text, flush=True)

    def one_after_the_other(self, work: Callable[[], T]) -> T:
        """``work`` in every process; on each machine one goes first, and the others find what it left on the disk."""
        if self.local_rank == 0:
            done = work()
        if self.count > 1:
            dist.barrier()
        return done if self.local_rank == 0 else work()


ALONE = Processes()


@contextmanager
def joined(cuda: bool) -> Iterator[Processes]:
    """The processes that torchrun started, this one among them; alone where it was started by hand.

    Raises Ended in place of what torch raises when one of them is gone.
    """
    missing = [name for name in TOLD if name not in os.environ]
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and missing:
        fail(f"WORLD_SIZE asks for several processes, but {', '.join(missing)} is not set; start them with torchrun")
    rank, count, local_rank = (int(os.environ.get(name, default))
                               for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))  # fmt: skip
    if count == 1:
        yield ALONE
        return
    if cuda:
        torch.cuda.set_device(local_rank)
    try:
        store, *_ = next(dist.rendezvous("env://", timeout=PATIENCE))
        store = meet(store, rank, count, PATIENCE)
        dist.init_process_group(
            "nccl" if cuda else "gloo", store=store, rank=rank, world_size=count, timeout=PATIENCE
        )
        try:
            yield Processes(rank, count, local_rank)
        finally:
            dist.destroy_process_group()
    except RuntimeError as error:
        if not _is_about_another(error):
            raise
        raise Ended(FAILED, f"process {rank} of {count} lost another one: {str(error).splitlines()[0]}") from error


def _is_about_another(error: RuntimeError) -> bool:
    """Whether a connection failed: torch has its own class for NCCL's and the store's, for gloo's only words."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)
