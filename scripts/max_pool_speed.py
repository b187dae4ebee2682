"""Time of max-pooling: ours beside native.

    python -m scripts.max_pool_speed [THREADS]

Forward and backward in float32, of images that a ReLU returned. Both sides run in both memory layouts and take turns.
A ratio is that of the medians: ours divided by native in its faster layout, and in the same layout. An empty Function
takes turns with them, which allocates its result and its gradient and computes nothing: no Function takes less time.
With one thread, the default, times are the processor's time of this process, which other load changes less.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

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
        steps["empty", "channels_last"] = make_step(compute_nothing, torch.channels_last, name)
        times = stopwatch.times(steps, ROUNDS, warmup=3)
        medians = {key: statistics.median(values) for key, values in times.items()}
        native = min(medians["native", layout] for layout in LAYOUTS)
        pairs = [(medians["ours", layout], medians["native", layout]) for layout in LAYOUTS]
        ratios = ", ".join(
            f"{layout} {ours / native:.2f} ({ours / same:.2f})"
            for layout, (ours, same) in zip(LAYOUTS, pairs, strict=True)
        )
        empty = medians["empty", "channels_last"] / native
        print(
            f"{name}: ours / native, in its faster layout (in the same) {ratios}; empty Function {empty:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
