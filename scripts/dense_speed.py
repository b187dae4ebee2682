"""Time of a dense layer with many examples: ours beside native.

    python -m scripts.dense_speed [THREADS]

Forward and backward in float32, with gradients of the input, the weight and the bias. The sides take turns; a ratio
is that of the medians. The peak is what a loop of independent multiplications and additions reaches in the same run,
and the least ratio is that of a side which reaches it. With one thread, the default, times are the processor's time
of this process, which other load changes less.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import manualgrad as mg
from manualgrad import kernels
from scripts.processor_peak import peak_flops
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
    instructions = kernels.available().instructions
    if instructions is None:
        raise SystemExit(f"dense_speed: {kernels.available()}")
    peak = peak_flops(instructions, stopwatch)
    print(f"{kernels.available()}\npeak {peak / 1e9:.0f} GFLOP/s with {stopwatch.threads} threads")
    for sizes in SIZES:
        steps = {"ours": make_step(mg.dense, *sizes), "native": make_step(F.linear, *sizes)}
        times = stopwatch.times(steps, ROUNDS, warmup=3)
        ours, native = (statistics.median(times[side]) for side in steps)
        least = 6 * math.prod(sizes) / peak  # seconds of three products
        print(
            f"{sizes[0]} examples, {sizes[1]} to {sizes[2]} features: ours / native {ours / native:.2f}; of the peak "
            f"ours {least / ours:.0%}, native {least / native:.0%}; the least ratio {least / native:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
