"""Time of max-pooling: ours beside native.

    python -m scripts.max_pool_speed [THREADS [NAME ...]]

Forward and backward in float32, of images that a ReLU returned. Both sides run in both memory layouts and take turns.
A ratio is that of the medians: ours divided by native in its faster layout, and in the same layout. An empty Function
takes turns with them, which allocates its result and its gradient and computes nothing: no Function takes less time.
The share of our kernels, for channels_last images, comes with the memory that they read and write in a second, and
with that of a copy of the images by PyTorch. With one thread, the default, times are the processor's time of this
process, which other load changes less.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

import manualgrad as mg
from manualgrad import kernels
from manualgrad.cpu.program import Program
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


class EmptyFunction(Function):
    """A Function of x that returns memory of a shape, and saves it; both results are not initialised."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: torch.Size) -> Tensor:
        out = torch.empty(shape, memory_format=torch.channels_last)
        ctx.x_shape = x.shape
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        (_,) = ctx.saved_tensors
        return torch.empty(ctx.x_shape, memory_format=torch.channels_last), None


def compute_nothing(x: Tensor, kernel_size: int, stride: int, padding: int) -> Tensor:
    """A result of the shape that max-pooling has."""
    height, width = ((n + 2 * padding - kernel_size) // stride + 1 for n in x.shape[2:])
    out: Tensor = EmptyFunction.apply(x, torch.Size((*x.shape[:2], height, width)))
    return out


def make_step(function: Callable[..., Tensor], layout: torch.memory_format, name: str) -> Callable[[], None]:
    """A forward and backward of the pooling ``name``."""
    shape, *sizes = POOLINGS[name]
    x = torch.randn(shape).relu().to(memory_format=layout).requires_grad_()
    g = torch.randn_like(function(x, *sizes).detach())

    def step() -> None:
        torch.autograd.grad(function(x, *sizes), x, g)

    return step


class KernelClock:
    """Seconds in the programs of kernels, for each step by name and each of its calls."""

    def __init__(self, seconds: Callable[[], float]) -> None:
        self.of_steps: dict[tuple[str, str], list[float]] = {}
        self.total = 0.0
        run = Program.run

        def timed_run(program: Program, addresses: Sequence[int]) -> None:
            start = seconds()
            run(program, addresses)
            self.total += seconds() - start

        Program.run = timed_run  # type: ignore[method-assign]

    def timed(self, step: Callable[[], None], name: tuple[str, str]) -> Callable[[], None]:
        """Return ``step`` with a clock that keeps the seconds of its kernels."""

        def timed_step() -> None:
            self.total = 0.0
            step()
            self.of_steps.setdefault(name, []).append(self.total)

        return timed_step


def bytes_moved(name: str) -> int:
    """Bytes of images, maxima and pooling indices that the kernels read or write, forward and backward."""
    (batch, channels, *size), kernel_size, stride, padding = POOLINGS[name]
    out_size = ((n + 2 * padding - kernel_size) // stride + 1 for n in size)
    return 2 * batch * channels * (4 * math.prod(size) + 5 * math.prod(out_size))


def main() -> None:
    stopwatch = stopwatch_from_arguments("python -m scripts.max_pool_speed", __doc__, list(POOLINGS))
    print(kernels.available())
    clock = KernelClock(stopwatch.seconds)
    functions = {"ours": mg.interop.operations.max_pool2d, "native": F.max_pool2d}
    for name in stopwatch.names:
        steps = {
            (side, layout): make_step(function, memory_format, name)
            for side, function in functions.items()
            for layout, memory_format in LAYOUTS.items()
        }
        steps["empty", "channels_last"] = make_step(compute_nothing, torch.channels_last, name)
        images = torch.randn(POOLINGS[name][0])
        steps["copy", "channels_last"] = partial(torch.empty_like(images).copy_, images)
        steps |= {key: clock.timed(step, key) for key, step in steps.items()}
        clock.of_steps.clear()
        times = stopwatch.times(steps, ROUNDS, warmup=3)
        medians = {key: statistics.median(values) for key, values in times.items()}
        native = min(medians["native", layout] for layout in LAYOUTS)
        pairs = [(medians["ours", layout], medians["native", layout]) for layout in LAYOUTS]
        ratios = ", ".join(
            f"{layout} {ours / native:.2f} ({ours / same:.2f})"
            for layout, (ours, same) in zip(LAYOUTS, pairs, strict=True)
        )
        empty, copy = medians["empty", "channels_last"], medians["copy", "channels_last"]
        in_kernels = statistics.median(clock.of_steps["ours", "channels_last"])
        ours, of_copy = (
            f"{nbytes / seconds / 1e9:.0f}"
            for nbytes, seconds in ((bytes_moved(name), in_kernels), (2 * images.nbytes, copy))
        )
        print(
            f"{name}: ours / native, in its faster layout (in the same) {ratios}; "
            f"empty Function {empty / native:.2f}, kernels {in_kernels / native:.2f} ({ours} GB/s, a copy {of_copy})",
            flush=True,
        )


if __name__ == "__main__":
    main()
