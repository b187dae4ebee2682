"""Time that the first training step of a converted model takes more than later ones.

    python -m scripts.first_step [MODEL ...]

The models, resnet18 by default, and the step are those of ``scripts.model_speed``, with channels_last images. The
first step compiles the kernels or reads them from the cache. It runs in a new process whose cache folder is empty,
and again in another with the folder that the first has filled; native's first step is measured in a third. Each
prints the seconds of its first step minus the median of the later ones, in time and in the processor's time of the
process, which other load changes less. They have one thread: others would wait for it, which is the processor's time.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import sys
import tempfile
import time

import torch

import manualgrad as mg
from scripts.model_speed import make_step, models

LATER_STEPS = 7
CLOCKS = time.perf_counter, time.process_time


def measure(name: str, side: str) -> tuple[float, ...]:
    """Seconds of the first step minus the median of later ones, by each of ``CLOCKS``."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    make, shape = models()[name]
    model = make().train().to(memory_format=torch.channels_last)
    x, labels = torch.randn(shape).to(memory_format=torch.channels_last), torch.randint(10, shape[:1])
    step = make_step(mg.from_torch(model) if side == "ours" else model, x, labels)
    steps = []
    for _ in range(1 + LATER_STEPS):
        starts = [clock() for clock in CLOCKS]
        step()
        steps.append([clock() - start for clock, start in zip(CLOCKS, starts, strict=True)])
    return tuple(first - statistics.median(later) for first, *later in zip(*steps, strict=True))


def main() -> None:
    known, names = list(models()), sys.argv[1:] or ["resnet18"]
    if unknown := set(names) - set(known):
        sys.exit(f"unknown models {', '.join(sorted(unknown))}: expected some of {', '.join(known)}")
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["MANUALGRAD_CACHE_DIR"] = folder  # for the processes below
            with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
                for side, state in (("ours", "nothing compiled"), ("ours", "from the cache"), ("native", "native")):
                    seconds, processor_seconds = pool.apply(measure, (name, side))
                    print(
                        f"{name}, {state}: the first step takes {seconds:.2f} s more than later ones "
                        f"({processor_seconds:.2f} s of the processor)",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
