"""Time of ReLU and cross-entropy, ours beside native, and the share of the peak that the kernel of a product reaches.

    python -m scripts.relu_and_loss_speed [THREADS]

Forward and backward in float32. The contenders take turns, and a ratio is that of the medians. An empty Function
takes turns with them, which allocates its result and its gradient and computes nothing. The product of square
matrices is that of the kernel of a convolution of one pixel, with the packing of the weight. With one thread, the
default, times are the processor's time of this process, which other load changes less.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

import manualgrad as mg
from manualgrad import kernels
from manualgrad.cpu.conv2d_programs import matrix_product_program
from scripts.processor_peak import peak_flops
from scripts.taking_turns import Stopwatch, stopwatch_from_arguments

ROUNDS = 41
RELU_SHAPES = (32, 64, 112, 112), (32, 64, 56, 56), (8, 64, 56, 56), (64, 128)
LOGITS = (64, 10), (64, 100), (64, 1000), (256, 1000), (1024, 1000), (4096, 1000)
MATRIX_SIZES = 256, 1024


class EmptyFunction(Function):
    """A Function of x that returns memory of a shape, and whose gradient is not initialised either."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: torch.Size) -> Tensor:
        ctx.save_for_backward(x)
        return torch.empty(shape)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return torch.empty_like(x), None


def make_step(function: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], None]:
    """A forward and backward of ``function`` of x."""
    g = torch.ones_like(function(x).detach())

    def step() -> None:
        torch.autograd.grad(function(x), x, g)

    return step


def print_ratio(stopwatch: Stopwatch, name: str, x: Tensor, functions: dict[str, Callable[[Tensor], Tensor]]) -> None:
    """Measure ``functions``, "ours" and "native", of x."""
    shape = functions["native"](x.detach()).shape
    contenders = functions | {"empty": lambda x: EmptyFunction.apply(x, shape)}
    times = stopwatch.times({key: make_step(f, x) for key, f in contenders.items()}, ROUNDS, warmup=3)
    ours, native, empty = (statistics.median(times[key]) for key in ("ours", "native", "empty"))
    print(
        f"{name} {tuple(x.shape)}: ours / native {ours / native:.2f}; empty Function {empty / native:.2f}", flush=True
    )


def main() -> None:
    stopwatch = stopwatch_from_arguments("python -m scripts.relu_and_loss_speed", __doc__)
    instructions = kernels.available().instructions
    if instructions is None:
        raise SystemExit(f"relu_and_loss_speed: {kernels.available()}")
    print(kernels.available())
    for shape in RELU_SHAPES:
        x = torch.randn(shape, requires_grad=True)
        print_ratio(stopwatch, "ReLU", x, {"ours": partial(mg.relu, subgradient=0), "native": F.relu})
    for rows, classes in LOGITS:
        x, labels = torch.randn(rows, classes, requires_grad=True), torch.randint(classes, (rows,))
        losses = {"ours": mg.softmax_cross_entropy, "native": F.cross_entropy}
        print_ratio(stopwatch, "cross-entropy", x, {key: partial(f, target=labels) for key, f in losses.items()})
    peak = peak_flops(instructions, stopwatch)
    for size in MATRIX_SIZES:
        a, b, out = (torch.randn(size, size) for _ in range(3))
        sizes, strides = (size, size, size), (b.stride(0), b.stride(1))
        program = matrix_product_program(instructions, sizes, strides, False, stopwatch.threads)
        products: dict[str, Callable[[], object]] = {
            "ours": partial(program.run, a.data_ptr(), b.data_ptr(), 0, out.data_ptr()),
            "native": partial(torch.mm, a, b, out=out),
        }
        times = stopwatch.times(products, ROUNDS, warmup=3)
        ours, native = (2 * size**3 / peak / statistics.median(times[key]) for key in products)
        print(f"product of {size} x {size} matrices: of the peak ours {ours:.0%}, native {native:.0%}", flush=True)


if __name__ == "__main__":
    main()
