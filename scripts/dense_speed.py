"""Time of a dense layer with many examples: ours beside native.

    python -m scripts.dense_speed [THREADS]

Forward and backward in float32, with gradients of the input, the weight and the bias. The sides take turns; a ratio
is that of the medians. With one thread, the default, times are the processor's time of this process, which other load
changes less.
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

ROUNDS = 21
SIZES = (  # examples, in_features, out_features
    (64, 2048, 1000), (256, 512, 512), (256, 2048, 1000), (512, 512, 512), (1024, 1024, 1024), (4096, 512, 512)
)  # fmt: skip


def make_step(function: Callable[..., Tensor], examples: int, features: int, channels: int) -> Callable[[], None]:
    """A forward and backward of one layer."""
    leaves = [
        torch.randn(shape).requires_grad_() for shape in ((examples, features), (channels, features), (channels,))
    ]
    g = torch.randn(examples, channels)

    def step() -> None:
        torch.autograd.grad(function(*leaves), leaves, g)

    return step


def main() -> None:
    stopwatch = stopwatch_from_arguments("python -m scripts.dense_speed", __doc__)
    print(kernels.available())
    for sizes in SIZES:
        steps = {"ours": make_step(mg.dense, *sizes), "native": make_step(F.linear, *sizes)}
        times = stopwatch.times(steps, ROUNDS, warmup=3)
        ours, native = (statistics.median(times[side]) for side in steps)
        print(
            f"{sizes[0]} examples, {sizes[1]} to {sizes[2]} features: ours / native {ours / native:.2f}", flush=True
        )


if __name__ == "__main__":
    main()
