"""Peak memory of a training step of converted models, beside the models that they were made from.

    python -m scripts.model_memory [MODEL ...]

The models and the step are those of ``scripts.model_speed``. Each side and memory layout is measured in a process of
its own, with one thread: the largest resident set of three steps, minus what is resident between steps. glibc returns
every freed block of a page or more to the system. With its default settings it keeps some, by chance, and figures
differ by half from run to run; if it keeps blocks of less than 64 KiB, those of models with small layers differ by a
fifth. The layout with the smaller peak counts on each side.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import sys

import torch

import manualgrad as mg
from compare.speed.memory import peak_memory
from scripts.model_speed import LAYOUTS, make_step, models

STEPS = 3


def measure(name: str, side: str, layout: str) -> int | None:
    """Peak of a step in bytes above what is resident between steps."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    make, shape = models()[name]
    model = make().train().to(memory_format=LAYOUTS[layout])
    x, labels = torch.randn(shape).to(memory_format=LAYOUTS[layout]), torch.randint(10, shape[:1])
    step = make_step(mg.from_torch(model) if side == "ours" else model, x, labels)
    step()
    return peak_memory(step, STEPS).step_bytes


def main() -> None:
    known = list(models())
    names = sys.argv[1:] or known
    if unknown := set(names) - set(known):
        sys.exit(f"unknown models {', '.join(sorted(unknown))}: expected some of {', '.join(known)}")
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": "4096", "MALLOC_TRIM_THRESHOLD_": "4096"}  # for the processes below
    ratios = []
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for name in names:
            peaks = {}
            for side in ("ours", "native"):
                measured = [pool.apply(measure, (name, side, layout)) for layout in LAYOUTS]
                if None in measured:
                    sys.exit("this system does not tell a process's peak of memory")
                peaks[side] = min(measured)
            ratios.append(peaks["ours"] / peaks["native"])
            ours, native = (peaks[side] / 2**20 for side in ("ours", "native"))
            print(f"{name}: ours {ours:.1f} MiB, native {native:.1f} MiB, ratio {ratios[-1]:.2f}", flush=True)
    print(f"geometric mean of {len(ratios)}: {statistics.geometric_mean(ratios):.2f}")


if __name__ == "__main__":
    main()
