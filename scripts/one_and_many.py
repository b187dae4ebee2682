"""Trains with 1, 2 and 4 processes over gloo, in float64, and says how far apart the parameters are after 50 steps;
also where 2 processes put the run down after a third of them, and 4 take it up.

python scripts/one_and_many.py

Batches of 31 images of the bundled sample, which neither 2 nor 4 processes share equally, and a last one of 3 or 2,
of which not every process gets one. From the second epoch on the hardest 0.6 of the images are chosen, and the last
10 weights are averaged. Exit code 1 where a parameter differs by more than 1e-12.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import tempfile
from pathlib import Path

import torch

from manualgrad import DocumentCNN, data
from manualgrad.training import run_state
from manualgrad.training.checkpoints import seal
from manualgrad.training.distributed import joined
from manualgrad.training.epochs import Epochs
from manualgrad.training.run import ENGINES, Run
from manualgrad.training.steps import Verdict, step_sizes

UNSEEN = Verdict(torch.zeros(1).long(), torch.zeros(1).long(), 0.0)  # the test images are not looked at
EPOCHS = Epochs(images=5 * 31 + 3, batch_size=31, count=12, shares=(1.0, 0.6))
AVERAGED = 10
TOLERANCE = 1e-12  # sums of float64 in another order; a share that is weighted wrongly changes the fourth digit


def main() -> int:
    far = False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for engine in ENGINES:
            alone = train(engine, 1, folder)
            others = {"2": train(engine, 2, folder), "4": train(engine, 4, folder)}
            train(engine, 2, folder, until=EPOCHS.steps // 3)
            others["2, then 4"] = train(engine, 4, folder, take_up=True)
            for counts, parameters in others.items():
                difference = max((a - b).abs().max().item() for a, b in zip(parameters, alone, strict=True))
                print(f"{engine:8}  {counts} processes against 1, after {EPOCHS.steps} steps: parameters moved by "
                      f"up to {moved(alone):.1f}, and differ by at most {difference:.1e}", flush=True)  # fmt: skip
                far |= not difference <= TOLERANCE
    return int(far)


def train(
    engine: str, count: int, folder: Path, until: int = EPOCHS.steps, take_up: bool = False
) -> list[torch.Tensor]:
    """Every parameter after ``until`` steps by ``count`` processes; all of them have to have the same."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    fork = multiprocessing.get_context("fork")
    processes = [
        fork.Process(target=train_one, args=(engine, rank, count, port, folder, until, take_up))
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    codes = [process.exitcode for process in processes]
    if any(codes):
        raise SystemExit(f"{count} processes ended with the exit codes {codes}")
    first, *others = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(count)]
    for other in others:
        if not all(torch.equal(a, b) for a, b in zip(first, other, strict=True)):
            raise SystemExit(f"the {count} processes do not agree among themselves")
    return first


def moved(parameters: list[torch.Tensor]) -> float:
    """How far the steps led away from the first weights."""
    return max((a - b).abs().max().item() for a, b in zip(parameters, first_model().parameters(), strict=True))


def first_model() -> DocumentCNN:
    torch.manual_seed(0)
    return DocumentCNN(dtype=torch.float64)


def train_one(engine: str, rank: int, count: int, port: str, folder: Path, until: int, take_up: bool) -> None:
    """What torchrun would start."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # fmt: skip
    torch.set_num_threads(1)
    with joined(cuda=False) as processes:
        model = first_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
        dataset = data.bundled_sample().limited(EPOCHS.images)
        run = Run(
            model, optimizer, step_sizes("one-cycle", optimizer, EPOCHS.steps), dataset,
            epochs=EPOCHS, seed=0, averaged=AVERAGED, engine=engine, processes=processes,
        )  # fmt: skip
        if take_up:
            run_state.restore(run, (folder / "checkpoint").read_bytes(), folder / "checkpoint")
        while run.step < until:
            run.take_step()
            if run.place == 0:
                run.close_epoch(UNSEEN)
    torch.save([parameter.detach() for parameter in model.parameters()], folder / f"{rank}.pt")
    if until < EPOCHS.steps and processes.is_first:
        (folder / "checkpoint").write_bytes(seal(run_state.state(run)))


if __name__ == "__main__":
    raise SystemExit(main())
