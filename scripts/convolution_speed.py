"""Time of single convolutions: ours beside native, and their shares of the processor's peak.

    python -m scripts.convolution_speed [THREADS [NAME ...]]

Forward and backward of batch 8 in float32, with gradients of the images, the weight and the bias; the images of a
first layer have no gradient. Native runs in its faster memory layout, ours in both. The contenders take turns; a
ratio is that of the medians. The peak is what a loop of independent multiplications and additions reaches in the same
run; only products with pixels inside the image count as work. With one thread, the default, times are the processor's
time of this process, which other load changes less.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import manualgrad as mg
from manualgrad import kernels
from scripts.processor_peak import peak_flops
from scripts.taking_turns import stopwatch_from_arguments

ROUNDS = 9
CONVOLUTIONS = {  # x, weight, stride, padding, groups
    "3x3, 64 channels at 56": ((8, 64, 56, 56), (64, 64, 3, 3), 1, 1, 1),
    "3x3, 128 at 28": ((8, 128, 28, 28), (128, 128, 3, 3), 1, 1, 1),
    "3x3, 256 at 14": ((8, 256, 14, 14), (256, 256, 3, 3), 1, 1, 1),
    "3x3, 512 at 7": ((8, 512, 7, 7), (512, 512, 3, 3), 1, 1, 1),
    "1x1, 256 to 1,024 at 14": ((8, 256, 14, 14), (1024, 256, 1, 1), 1, 0, 1),
    "1x1 stride 2, 256 to 512 at 28": ((8, 256, 28, 28), (512, 256, 1, 1), 2, 0, 1),
    "7x7 stride 2, RGB at 224": ((8, 3, 224, 224), (64, 3, 7, 7), 2, 3, 1),
    "3x3, 32 groups of 8 at 14": ((8, 256, 14, 14), (256, 8, 3, 3), 1, 1, 32),
    "3x3, 32 groups of 16 at 14": ((8, 512, 14, 14), (512, 16, 3, 3), 1, 1, 32),
    "3x3, 32 groups of 32 at 7": ((8, 1024, 7, 7), (1024, 32, 3, 3), 1, 1, 32),
    "3x3, 32 groups of 4 at 28": ((8, 128, 28, 28), (128, 4, 3, 3), 1, 1, 32),
    "3x3 depthwise, 256 at 14": ((8, 256, 14, 14), (256, 1, 3, 3), 1, 1, 256),
    "3x3 depthwise stride 2, 128 at 56": ((8, 128, 56, 56), (128, 1, 3, 3), 2, 1, 128),
    "7x7 depthwise, 256 at 16": ((8, 256, 16, 16), (256, 1, 7, 7), 1, 3, 256),
    "7x7 depthwise, 96 at 56": ((8, 96, 56, 56), (96, 1, 7, 7), 1, 3, 96),
}
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


def make_step(function: Callable[..., Tensor], layout: torch.memory_format, name: str) -> Callable[[], None]:
    """A forward and backward of the convolution ``name``."""
    x_shape, w_shape, stride, padding, groups = CONVOLUTIONS[name]
    x, w = (torch.randn(shape).to(memory_format=layout) for shape in (x_shape, w_shape))
    b = torch.randn(w_shape[0])
    leaves = [t.requires_grad_() for t in ((w, b) if x_shape[1] == 3 else (x, w, b))]
    g = torch.randn_like(function(x, w, b, stride, padding, 1, groups).detach())

    def step() -> None:
        torch.autograd.grad(function(x, w, b, stride, padding, 1, groups), leaves, g)

    return step


def taps_inside(size: int, kernel: int, stride: int, padding: int) -> int:
    """Pairs of a window and a tap in one dimension whose pixel is inside the image; the others need no product."""
    windows = range(0, size + 2 * padding - kernel + 1, stride)
    return sum(padding <= start + tap < padding + size for start in windows for tap in range(kernel))


def main() -> None:
    stopwatch = stopwatch_from_arguments("python -m scripts.convolution_speed", __doc__, list(CONVOLUTIONS))
    instructions = kernels.available().instructions
    if instructions is None:
        raise SystemExit(f"convolution_speed: {kernels.available()}")
    peak = peak_flops(instructions, stopwatch)
    print(f"{kernels.available()}\npeak {peak / 1e9:.0f} GFLOP/s with {stopwatch.threads} threads")
    for name in stopwatch.names:
        x_shape, w_shape, stride, padding, _ = CONVOLUTIONS[name]
        functions = {"ours": mg.interop.operations.conv2d, "native": F.conv2d}
        steps = {
            (side, layout): make_step(function, memory_format, name)
            for side, function in functions.items()
            for layout, memory_format in LAYOUTS.items()
        }
        times = stopwatch.times(steps, ROUNDS, warmup=1)
        medians = {key: statistics.median(values) for key, values in times.items()}
        native = min(medians["native", layout] for layout in LAYOUTS)
        rows, columns = (taps_inside(n, k, stride, padding) for n, k in zip(x_shape[2:], w_shape[2:], strict=True))
        passes = 2 if x_shape[1] == 3 else 3
        flops = 2 * passes * x_shape[0] * rows * columns * w_shape[0] * w_shape[1]
        share = {side: flops / peak / min(min(times[side, layout]) for layout in LAYOUTS) for side in functions}
        ratios = ", ".join(f"{layout} {medians['ours', layout] / native:.2f}" for layout in LAYOUTS)
        print(f"{name}: ours / native {ratios}; of the peak ours {share['ours']:.0%}, native {share['native']:.0%}")


if __name__ == "__main__":
    main()
