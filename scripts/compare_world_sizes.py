"""Train with 1, 2 and 4 processes over gloo, in float64, and print how much the parameters differ after 50 steps.

python scripts/compare_world_sizes.py

A further run stops with 2 processes after a third of the steps, and 4 processes resume it. The batches have 31 images
of the bundled sample, so that the shards of 2 and 4 processes differ in size. The last batch of an epoch has 3 or 2
images, so that some of 4 processes get none. From the second epoch on the hardest 0.6 of the images are used, and the
weights of the last 10 steps are averaged. Exit code 1 if a parameter differs by more than 1e-12.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import tempfile
from functools import cache
from pathlib import Path

import torch
import torch._dynamo  # an optimizer imports it, which takes seconds: here it is once, before the processes are forked

from manualgrad import DocumentCNN, data, kernels
from manualgrad.training import run_state
from manualgrad.training.checkpoints import serialize
from manualgrad.training.distributed import init_distributed
from manualgrad.training.epochs import EpochLayout
from manualgrad.training.evaluation import EvalResult
from manualgrad.training.optimizers import make_lr_scheduler
from manualgrad.training.run import ENGINES, TrainingRun

NO_EVALUATION = EvalResult(torch.zeros(1).long(), torch.zeros(1).long(), 0.0)
EPOCHS = EpochLayout(num_images=5 * 31 + 3, batch_size=31, num_epochs=12, fractions=(1.0, 0.6))
AVERAGE_LAST = 10
TOLERANCE = 1e-12  # float64 sums in another order; a shard with a wrong weight changes the fourth digit


def main() -> int:
    kernels.available()  # compiled or loaded once, for all processes
    read_dataset()
    differs = False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for engine in ENGINES:
            single = train(engine, 1, folder)
            others = {"2": train(engine, 2, folder), "4": train(engine, 4, folder)}
            train(engine, 2, folder, until=EPOCHS.num_steps // 3)
            others["2, then 4"] = train(engine, 4, folder, resume=True)
            for world_sizes, parameters in others.items():
                difference = max((a - b).abs().max().item() for a, b in zip(parameters, single, strict=True))
                change = total_change(single)
                print(f"{engine:8}  {world_sizes} and 1 processes, after {EPOCHS.num_steps} steps: parameters changed"
                      f" by up to {change:.1f} and differ by at most {difference:.1e}", flush=True)  # fmt: skip
                differs |= not difference <= TOLERANCE
    return int(differs)


def train(
    engine: str, world_size: int, folder: Path, until: int = EPOCHS.num_steps, resume: bool = False
) -> list[torch.Tensor]:
    """Train with ``world_size`` processes up to step ``until``, and return the parameters, equal in all processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    fork = multiprocessing.get_context("fork")
    processes = [
        fork.Process(target=train_rank, args=(engine, rank, world_size, port, folder, until, resume))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    codes = [process.exitcode for process in processes]
    if any(codes):
        raise SystemExit(f"{world_size} processes ended with the exit codes {codes}")
    rank0, *others = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world_size)]
    for other in others:
        if not all(torch.equal(a, b) for a, b in zip(rank0, other, strict=True)):
            raise SystemExit(f"{world_size} processes ended with different parameters")
    return rank0


def total_change(parameters: list[torch.Tensor]) -> float:
    """Largest difference of a parameter from its initial value."""
    return max((a - b).abs().max().item() for a, b in zip(parameters, initial_model().parameters(), strict=True))


def initial_model() -> DocumentCNN:
    torch.manual_seed(0)
    return DocumentCNN(dtype=torch.float64)


@cache
def read_dataset() -> data.Dataset:
    return data.bundled_sample().limited(EPOCHS.num_images)


def train_rank(engine: str, rank: int, world_size: int, port: str, folder: Path, until: int, resume: bool) -> None:
    """Train as one rank, in a process with the environment that torchrun sets."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size),
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # fmt: skip
    torch.set_num_threads(1)
    with init_distributed(cuda=False) as distributed:
        model = initial_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
        run = TrainingRun(
            model, optimizer, make_lr_scheduler("one-cycle", optimizer, EPOCHS.num_steps), read_dataset(),
            epochs=EPOCHS, seed=0, average_last=AVERAGE_LAST, engine=engine, distributed=distributed,
        )  # fmt: skip
        if resume:
            run_state.restore(run, (folder / "checkpoint").read_bytes(), folder / "checkpoint")
        while run.step < until:
            run.train_step()
            if run.step_in_epoch == 0:
                run.end_epoch(NO_EVALUATION)
    torch.save([parameter.detach() for parameter in model.parameters()], folder / f"{rank}.pt")
    if until < EPOCHS.num_steps and distributed.is_rank0:
        (folder / "checkpoint").write_bytes(serialize(run_state.state(run)))


if __name__ == "__main__":
    raise SystemExit(main())
