"""Functions that are right when they are called once, and share memory or a count between calls.

Each ``make_...`` makes a new Function, so that no case starts with the state of another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from tests.compare.gallery.soundness.wrong_gradient import wrong_with_state
from tests.compare.gallery.wrong_function import randn

Apply = Callable[..., Any]


def make_class_attribute() -> Apply:
    class Sine(Function):
        x: Tensor

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            Sine.x = x.clone()
            return x.sin()

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return g * Sine.x.cos()

    return Sine.apply


def make_workspace() -> Apply:
    """Unfold the signal into a buffer that all calls share."""
    buffers: dict[tuple[Any, ...], Tensor] = {}

    class Convolution(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
            windows = x.unfold(2, w.shape[2], 1)
            buffer = buffers.setdefault((x.dtype, windows.shape), torch.empty(windows.shape, dtype=x.dtype))
            buffer.copy_(windows)
            ctx.buffer, ctx.w, ctx.length = buffer, w, x.shape[2]
            return torch.einsum("nclk,ock->nol", buffer, w)

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
            return F.conv_transpose1d(g, ctx.w), torch.einsum("nclk,nol->ock", ctx.buffer, g)

    return Convolution.apply


def make_gradient_buffer() -> Apply:
    buffers: dict[Any, Tensor] = {}

    class Square(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            buffer = buffers.setdefault((x.dtype, x.shape), torch.empty(x.shape, dtype=x.dtype))
            return torch.mul(2 * g, x, out=buffer).detach()

    return Square.apply


def make_output_buffer() -> Apply:
    buffers: dict[Any, Tensor] = {}

    class Exponential(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            buffer = buffers.setdefault((x.dtype, x.shape), torch.empty(x.shape, dtype=x.dtype))
            ctx.y = torch.exp(x, out=buffer).detach()
            return ctx.y.detach()

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return g * ctx.y

    return Exponential.apply


def make_accumulation() -> Apply:
    totals: dict[Any, Tensor] = {}

    class Linear(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
            ctx.save_for_backward(x, w)
            return F.linear(x, w)

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
            x, w = ctx.saved_tensors
            total = totals.setdefault((w.dtype, w.shape), torch.zeros(w.shape, dtype=w.dtype))
            total += g.T @ x
            return g @ w, total.clone()

    return Linear.apply


def make_counter() -> Apply:
    """Compute the right gradient in the first two backwards."""
    calls: list[int] = []

    class Tanh(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            y = x.tanh()
            ctx.save_for_backward(y)
            return y

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            (y,) = ctx.saved_tensors
            calls.append(1)
            return g * (1 - y * y) if len(calls) <= 2 else g * (1 - y)

    return Tanh.apply


def make_last_mask() -> Apply:
    last: dict[str, Tensor] = {}

    class LeakyReLU(Function):
        @staticmethod
        def forward(x: Tensor) -> Tensor:
            last["slope"] = torch.where(x > 0, torch.ones_like(x), 0.1)
            return x * last["slope"]

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
            pass

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return g * last["slope"]

    return LeakyReLU.apply


def make_consuming_backward() -> Apply:
    """Compute the gradient in the memory of what was saved."""

    class Sine(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.cosine = x.cos()
            return x.sin()

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return ctx.cosine.mul_(g).clone()

    return Sine.apply


def make_flagged_backward() -> Apply:
    """Return 0 from a second backward."""

    class Product(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
            ctx.save_for_backward(x, w)
            ctx.is_first = True
            return x * w

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
            x, w = ctx.saved_tensors
            factor, ctx.is_first = float(ctx.is_first), False
            return g * w, factor * g * x

    return Product.apply


def make_stack() -> Apply:
    """Push in forward, pop in backward: the order of several calls is reversed."""
    stack: list[tuple[Tensor, Tensor]] = []

    class Division(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
            stack.append((x.detach().clone(), y.detach().clone()))
            return x / y

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
            x, y = stack[-1] if len(stack) == 1 else stack.pop()
            return g / y, -g * x / (y * y)

    return Division.apply


def make_running_mean() -> Apply:
    """Subtract a mean that forward updates, and that starts at 0."""
    means: dict[torch.dtype, Tensor] = {}

    class Centre(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            mean = means.setdefault(x.dtype, x.new_zeros(()))
            means[x.dtype] = 0.9 * mean + 0.1 * x.mean()
            return x - mean

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return g

    return Centre.apply


X = randn(x=(3, 4))
XW = randn(x=(4, 3), w=(2, 3))
PAIR = randn(x=(2, 3), w=(2, 3))

STATE_BETWEEN_CALLS = [
    wrong_with_state("sine: saves in a class attribute", "x", make_class_attribute, torch.sin, X),
    wrong_with_state("convolution: buffer of windows shared by calls", "w", make_workspace, F.conv1d,
                     randn(x=(2, 2, 5), w=(2, 2, 3))),
    wrong_with_state("square: gradient in a buffer", "x", make_gradient_buffer, torch.square, X),
    wrong_with_state("exponential: output in a buffer", "", make_output_buffer, torch.exp, X),
    wrong_with_state("linear: grad_w accumulates", "w", make_accumulation, F.linear, XW),
    wrong_with_state("tanh: right in two backwards", "x", make_counter, torch.tanh, randn(x=(6,))),
    wrong_with_state("leaky ReLU: slopes of the last call", "x", make_last_mask, lambda x: F.leaky_relu(x, 0.1), X),
    wrong_with_state("sine: backward overwrites what it saved", "x", make_consuming_backward, torch.sin,
                     randn(x=(2, 3, 2))),
    wrong_with_state("product: second backward returns 0", "w", make_flagged_backward, torch.mul, PAIR),
    wrong_with_state("division: a stack of saved tensors", "", make_stack, torch.div,
                     lambda: {"x": torch.randn(2, 3), "y": torch.rand(2, 3) + 0.5}),
    wrong_with_state("identity: subtracts a running mean", "output", make_running_mean, torch.clone,
          randn(x=(2, 3, 2))),
]  # fmt: skip
