"""Kill training runs at random moments, resume each, and compare the weights with those of uninterrupted runs.

python scripts/kill_and_resume.py 100
python scripts/kill_and_resume.py 3 --seed 7

Each run is train.py on the bundled sample in a process of its own, with subsets of the images and averaged weights.
The two engines alternate. SIGKILL ends every third run while it writes a checkpoint, as the unfinished file proves,
and the other runs after a random time. A run that finishes before it is killed is repeated with another random time.
To save time, 100 test images are evaluated and no plots are drawn. Exit code 1 unless all runs end with equal bits.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import os
import random
import signal
import tempfile
import time
from collections import Counter
from functools import cache
from pathlib import Path

import torch._dynamo  # noqa: F401  # an optimizer imports it, which takes seconds: here it is once, before forks

from manualgrad import data, kernels
from manualgrad.files import UNFINISHED_SUFFIX
from manualgrad.training import command, plots
from manualgrad.training.argument_types import bounded
from manualgrad.training.checkpoints import CheckpointStore
from manualgrad.training.run import ENGINES

NUM_STEPS, CHECKPOINT_EVERY = 50, 2
OPTIONS = ("--limit", "200", "--batch-size", "8", "--epochs", "3", "--shares", "0.8", "0.6", "--average", "0.3",
           "--checkpoint-every", str(CHECKPOINT_EVERY), "--resume", "auto")  # fmt: skip
OPTIMIZER = {"autograd": "adam", "document": "sgd"}  # the second pair takes fused steps


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kills", type=bounded(int, 1), help="number of runs to kill")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments (default: 0)")
    options = parser.parse_args()
    generator, outcomes = random.Random(options.seed), Counter()
    kernels.available()  # compiled or loaded once, for all forks
    read_sample()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        begin = time.perf_counter()
        for engine in ENGINES:
            finish(folder / engine, engine)
        duration = (time.perf_counter() - begin) / len(ENGINES)
        for number in range(options.kills):
            out, engine = folder / str(number), ENGINES[number % len(ENGINES)]
            if number % 3 == 0:
                moment = "while a checkpoint was written"
                while not kill_during_write(out, engine, generator):
                    pass  # the checkpoint was complete, or the run finished
            else:
                moment = "at a random moment"
                while not kill_at_random_moment(out, engine, generator, duration):
                    pass  # the run finished
            checkpoints = CheckpointStore(out / "checkpoints").newest_first()
            finish(out, engine)
            is_equal = (out / "weights.pt").read_bytes() == (folder / engine / "weights.pt").read_bytes()
            outcome = "bit-equal" if is_equal else "DIFFERENT"
            outcomes[f"killed {moment}, {outcome}"] += 1
            print(f"{number + 1:4}  {engine:8}  killed {moment}, newest checkpoint "
                  f"{checkpoints[0].name if checkpoints else 'none'}, resumed: {outcome}", flush=True)  # fmt: skip
    for outcome, count in sorted(outcomes.items()):
        print(f"{count:4}  {outcome}")
    return int(any("DIFFERENT" in outcome for outcome in outcomes))


def start(out: Path, engine: str) -> multiprocessing.Process:
    """Start train.py in a fork of this process, which has imported, compiled and read what every run needs."""
    process = multiprocessing.get_context("fork").Process(target=run, args=(out, engine))
    process.start()
    return process


@cache
def read_sample() -> data.Dataset:
    """The bundled sample with 100 test images."""
    sample = data.bundled_sample()
    return dataclasses.replace(sample, test=sample.test.first(100))


def run(out: Path, engine: str) -> None:
    """Run train.py in this process, with its output in log.txt, 100 test images, and no plots."""
    out.mkdir(exist_ok=True)
    log = os.open(out / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    data.load = lambda *_, **__: read_sample()
    for function in ("training_curves", "confusion_matrix", "kernel_images", "misclassified_images", "save_png"):
        setattr(plots, function, lambda *_: None)
    arguments = [*OPTIONS, "--engine", engine, "--optimizer", OPTIMIZER[engine], "--out", str(out)]
    raise SystemExit(command.main(arguments))


def finish(out: Path, engine: str) -> None:
    """Run train.py to its end, from the newest checkpoint if there is one."""
    process = start(out, engine)
    process.join()
    if process.exitcode != 0:
        raise SystemExit(
            f"expected a finished run, got exit code {process.exitcode}:\n{(out / 'log.txt').read_text()}"
        )


def kill_at_random_moment(out: Path, engine: str, generator: random.Random, duration: float) -> bool:
    """Start a run and kill it after a random time up to ``duration`` seconds. Return False if it finished before."""
    clear(out)
    process = start(out, engine)
    process.join(generator.uniform(0, duration))
    return kill(process)


def kill_during_write(out: Path, engine: str, generator: random.Random) -> bool:
    """Start a run and kill it while it writes a random checkpoint. Return False if the write was complete."""
    clear(out)
    step = generator.randrange(CHECKPOINT_EVERY, NUM_STEPS + 1, CHECKPOINT_EVERY)
    unfinished = out / "checkpoints" / f"step-{step:09}.checkpoint{UNFINISHED_SUFFIX}"
    process = start(out, engine)
    while process.is_alive() and not unfinished.exists():
        time.sleep(0.0002)  # writing a checkpoint takes some milliseconds
    return kill(process) and unfinished.exists()


def kill(process: multiprocessing.Process) -> bool:
    """Send SIGKILL. Return True if the process had not ended before."""
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def clear(out: Path) -> None:
    """Delete everything in the folder."""
    for path in sorted(out.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


if __name__ == "__main__":
    raise SystemExit(main())
