"""Time of max-pooling: ours beside native.

    python -m scripts.max_pool_speed [THREADS]

Forward and backward in float32, of images that a ReLU returned. Both sides run in both memory layouts and take turns.
A ratio is that of the medians: ours divided by native in its faster layout, and in the same layout. With one thread,
the default, times are the processor's time of this process, which other load changes less.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import manualgrad as mg
from manualgrad import kernels
from scripts.taking_turns import stopwatch_from_arguments

ROUNDS = 11
POOLINGS = {  # shape of x, kernel size, stride, padding
    "3x3 stride 2, padded, 64 channels at 112": ((8, 64, 112, 112), 3, 2, 1),
    "3x3 stride 2, 64 at 112": ((8, 64, 112, 112), 3, 2, 0),
    "2x2, 64 at 112": ((8, 64, 112, 112), 2, 2, 0),
    "3x3 stride 2, padded, 64 at 32": ((8, 64, 32, 32), 3, 2, 1),
    "2x2, 32 at 32": ((32, 32, 32, 32), 2, 2, 0),
    "2x2, 16 at 24": ((64, 16, 24, 24), 2, 2, 0),
    "2x2, 6 at 28": ((64, 6, 28, 28), 2, 2, 0),
    "2x2, 16 at 10": ((64, 16, 10, 10), 2, 2, 0),
}
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


def make_step(function: Callable[..., Tensor], layout: torch.memory_format, name: str) -> Callable[[], None]:
    """A forward and backward of the pooling ``name``."""
    shape, *sizes = POOLINGS[name]
    x = torch.randn(shape).relu().to(memory_format=layout).requires_grad_()
    g = torch.randn_like(function(x, *sizes).detach())

    def step() -> None:
        torch.autograd.grad(function(x, *sizes), x, g)

    return step


def main() -> None:
    stopwatch = stopwatch_from_arguments("python -m scripts.max_pool_speed", __doc__)
    print(kernels.available())
    functions = {"ours": mg.interop.operations.max_pool2d, "native": F.max_pool2d}
    for name in POOLINGS:
        steps = {
            (side, layout): make_step(function, memory_format, name)
            for side, function in functions.items()
            for layout, memory_format in LAYOUTS.items()
        }
        times = stopwatch.times(steps, ROUNDS, warmup=3)
        medians = {key: statistics.median(values) for key, values in times.items()}
        native = min(medians["native", layout] for layout in LAYOUTS)
        pairs = [(medians["ours", layout], medians["native", layout]) for layout in LAYOUTS]
        ratios = ", ".join(
            f"{layout} {ours / native:.2f} ({ours / same:.2f})"
            for layout, (ours, same) in zip(LAYOUTS, pairs, strict=True)
        )
        print(f"{name}: ours / native, in its faster layout (in the same) {ratios}", flush=True)


if __name__ == "__main__":
    main()
