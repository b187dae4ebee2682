"""Kills training runs at random moments, takes each up again, and compares the weights with those of one left alone.

python scripts/kill_and_resume.py 100
python scripts/kill_and_resume.py 3 --seed 7

Every run is train.py on the bundled sample, which chooses among the images and averages its last weights, with both
engines in turn, in a process of its own that SIGKILL ends: every third while it writes a checkpoint, which the
unfinished file shows that it leaves behind; the others when a time drawn at random has passed. A run that is over
before that is not counted, and another time is drawn. So that it lasts minutes, 100 test images are looked at and no
pictures are drawn. Exit code 1 unless all end with the same bits.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from manualgrad import data
from manualgrad.files import UNFINISHED
from manualgrad.training import pictures
from manualgrad.training.checkpoints import Store
from manualgrad.training.commandline import at_least
from manualgrad.training.run import ENGINES

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # train.py is no part of the package
import train

STEPS, EVERY = 50, 2
OPTIONS = ("--limit", "200", "--batch-size", "8", "--epochs", "3", "--shares", "0.8", "0.6", "--average", "0.3",
           "--checkpoint-every", str(EVERY), "--resume", "auto")  # fmt: skip
OPTIMIZER = {"autograd": "adam", "document": "sgd"}  # the second by one program a step


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kills", type=at_least(int, 1))
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    options = parser.parse_args()
    draw, outcomes = random.Random(options.seed), Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        begin = time.perf_counter()
        for engine in ENGINES:
            finish(folder / engine, engine)
        longest = (time.perf_counter() - begin) / len(ENGINES)
        for number in range(options.kills):
            out, engine = folder / str(number), ENGINES[number % len(ENGINES)]
            moment = "while a checkpoint was written" if number % 3 == 0 else "at a random moment"
            while not (kill_in_writing(out, engine, draw) if number % 3 == 0 else kill(out, engine, draw, longest)):
                pass  # it was over, or the checkpoint was: a new run, and another moment
            saved = Store(out / "checkpoints").newest_first()
            finish(out, engine)
            same = (out / "weights.pt").read_bytes() == (folder / engine / "weights.pt").read_bytes()
            outcome = "bit-equal" if same else "DIFFERENT"
            outcomes[f"killed {moment}, {outcome}"] += 1
            print(f"{number + 1:4}  {engine:8}  killed {moment}, newest checkpoint "
                  f"{saved[0].name if saved else 'none'}, taken up: {outcome}", flush=True)  # fmt: skip
    for outcome, count in sorted(outcomes.items()):
        print(f"{count:4}  {outcome}")
    return int(any("DIFFERENT" in outcome for outcome in outcomes))


def start(out: Path, engine: str) -> multiprocessing.Process:
    """train.py in a copy of this process, which has imported everything and calculated nothing."""
    process = multiprocessing.get_context("fork").Process(target=run, args=(out, engine))
    process.start()
    return process


def run(out: Path, engine: str) -> None:
    out.mkdir(exist_ok=True)
    log = os.open(out / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sample = data.bundled_sample()
    sample = dataclasses.replace(sample, test=sample.test.first(100))
    train.data.load = lambda *_, **__: sample
    for picture in ("curves", "confusion", "kernels", "mistakes", "save"):
        setattr(pictures, picture, lambda *_: None)
    raise SystemExit(train.main([*OPTIONS, "--engine", engine, "--optimizer", OPTIMIZER[engine], "--out", str(out)]))


def finish(out: Path, engine: str) -> None:
    """A run to its end, from the newest checkpoint if there is one."""
    process = start(out, engine)
    process.join()
    if process.exitcode != 0:
        raise SystemExit(f"a run that was to finish ended with {process.exitcode}:\n{(out / 'log.txt').read_text()}")


def kill(out: Path, engine: str, draw: random.Random, longest: float) -> bool:
    """Whether the run was killed in time, at a moment drawn between its begin and its end."""
    clear(out)
    process = start(out, engine)
    process.join(draw.uniform(0, longest))
    return end(process)


def kill_in_writing(out: Path, engine: str, draw: random.Random) -> bool:
    """Whether a checkpoint drawn at random was still unfinished when the run was dead."""
    clear(out)
    step = draw.randrange(EVERY, STEPS + 1, EVERY)
    unfinished = out / "checkpoints" / f"step-{step:09}.checkpoint{UNFINISHED}"
    process = start(out, engine)
    while process.is_alive() and not unfinished.exists():
        time.sleep(0.0002)  # a checkpoint takes some milliseconds
    return end(process) and unfinished.exists()


def end(process: multiprocessing.Process) -> bool:
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def clear(out: Path) -> None:
    for path in sorted(out.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


if __name__ == "__main__":
    raise SystemExit(main())
