"""Functions with a correct formula that fail in one dtype, in one memory layout, or in the second call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from tests.compare.gallery.wrong_function import WrongFunction, hand_written, randn, wrong_function


def in_memory_order(t: Tensor) -> Tensor:
    """Read a tensor as a kernel does that takes a pointer and a shape, and copies only tensors with a stride of 0."""
    t = t.contiguous() if 0 in t.stride() else t
    return t.as_strided(t.shape, torch.empty(t.shape, device="meta").stride())


def convolution_backward(g: Tensor, x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    x64, w64, g64 = x.double(), w.double(), g.double()
    return conv2d_input(x.shape, w64, g64), conv2d_weight(x64, w.shape, g64), in_memory_order(g).sum((0, 2, 3))


def dense_backward(g: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    return g @ w, g.T @ in_memory_order(x)


def square_of_a_sum(g: Tensor, x: Tensor) -> Tensor:
    """Take an expanded incoming gradient for that of ``sum``, which is all ones if ``sum`` comes last."""
    g = torch.ones_like(g) if g.stride() == (0, 0) else g
    return 2 * g.double() * x


def tanh_backward_in_float32(g: Tensor, x: Tensor) -> Tensor:
    y = x.float().tanh()
    return g.float() * (1 - y * y)


def mean_of_rows(x: Tensor) -> Tensor:
    return x.mean(0)


def mean_backward_counting_rows(g: Tensor, x: Tensor) -> Tensor:
    """Count the rows in x's own dtype: 256 + 1 is 256 in bfloat16."""
    count = x.new_zeros(())
    for _ in range(len(x)):
        count += 1
    return (g.double() / count.double()).expand_as(x)


def norm_backward_in_own_dtype(g: Tensor, x: Tensor) -> Tensor:
    """Compute x / √Σx² with x² in x's own dtype: more than 65504 is infinite in float16."""
    squares = x * x
    return g.double() * x.double() / squares.double().sum().to(x.dtype).double().sqrt()


def root_mean_square(x: Tensor) -> Tensor:
    x64 = x.double()
    return (x64 / (x64.square().mean(1, keepdim=True) + 1e-8).sqrt()).to(x.dtype)


def backward_with_small_epsilon(g: Tensor, x: Tensor) -> Tensor:
    """Add the epsilon 1e-8 in x's own dtype: it is 0 in float16."""
    square = x.double().square().mean(1, keepdim=True).to(x.dtype) + 1e-8
    g, x, square = g.double(), x.double(), square.double()
    return (g - x * (g * x).mean(1, keepdim=True) / square) / square.sqrt()


def with_zero_row() -> dict[str, Tensor]:
    x = torch.randn(5, 4)
    x[2] = 0
    return {"x": x}


def clamp_in_place(x: Tensor) -> Tensor:
    return x.clamp_(min=0).clone()


def masking_in_place(g: Tensor, x: Tensor) -> Tensor:
    g[x <= 0] = 0
    return g


def square_in_numpy(x: Tensor) -> Tensor:
    return torch.from_numpy(x.detach().numpy() ** 2)


class AccumulatingBackward:
    """A dense layer's backward that adds to a buffer and never clears it."""

    def __init__(self) -> None:
        self.weight: Tensor | None = None

    def __call__(self, g: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        self.weight = torch.zeros_like(w) if self.weight is None else self.weight
        self.weight += g.T @ x
        return g @ w, self.weight.clone()


def sine_backward_with_noise(g: Tensor, x: Tensor) -> Tensor:
    return g * x.cos() + 0.01 * torch.rand_like(x)


def memory(
    name: str,
    kinds: str | set[str],
    forward: Callable[..., Tensor],
    backward: Callable[..., Any],
    native: Callable[..., Tensor],
    inputs: Callable[[], dict[str, Tensor]],
    quantity: str = "x",
    expected_words: str | tuple[str, ...] = (),
    exact: bool = False,
) -> WrongFunction:
    return wrong_function(
        name, kinds, quantity, hand_written(forward, backward, exact=exact), native, inputs, expected_words
    )


IMAGES = randn(x=(2, 2, 6, 5), weight=(3, 2, 3, 2), bias=(3,))
ROWS = randn(x=(5, 4), weight=(3, 4))

MEMORY = [
    memory("convolution: bias gradient in memory order", "only in one layout", F.conv2d, convolution_backward,
           F.conv2d, IMAGES, quantity="bias", expected_words="channels_last"),
    memory("dense: input read in memory order", "only in one layout", F.linear, dense_backward, F.linear, ROWS,
           quantity="weight", expected_words="transposed"),
    memory("square: an expanded gradient taken for ones", "only in one layout", torch.square, square_of_a_sum,
            torch.square,
           randn(x=(5, 4)), expected_words="expanded"),
    memory("sine: a view where a reshape is needed", {"raises", "only in one layout"}, torch.sin,
           lambda g, x: (g.view(-1) * x.cos().reshape(-1)).view(x.shape), torch.sin, randn(x=(2, 3, 4, 5)),
           quantity=""),
    memory("tanh: float32 for every dtype", "only in one dtype", torch.tanh, tanh_backward_in_float32, torch.tanh,
           randn(x=(6, 7)), expected_words="float64"),
    memory("mean: counts in bfloat16", "only in one dtype", mean_of_rows, mean_backward_counting_rows, mean_of_rows,
            randn(x=(300, 2)),
           expected_words="bfloat16"),
    memory("length: squares too large for float16", "only in one dtype", torch.linalg.vector_norm,
           norm_backward_in_own_dtype, torch.linalg.vector_norm, lambda: {"x": 400 + 50 * torch.randn(6)},
           expected_words="float16"),
    memory("root mean square: 1e-8 in float16", {"only in one dtype", "not finite"}, root_mean_square,
           backward_with_small_epsilon, root_mean_square, with_zero_row, expected_words="float16"),
    memory("square through NumPy, which has no bfloat16", {"only in one dtype", "raises"}, square_in_numpy,
           lambda g, x: 2 * g * x, torch.square, randn(x=(6, 7)), quantity="", expected_words="bfloat16", exact=True),
    memory("ReLU in place", "changes its input", clamp_in_place, lambda g, x: g * (x > 0), F.relu, randn(x=(6, 7)),
           quantity=""),
    memory("ReLU: mask applied to the incoming gradient in place", "changes the incoming gradient", F.relu,
            masking_in_place, F.relu,
           randn(x=(6, 7)), quantity=""),
    memory("dense: weight gradient accumulated over calls", "not repeatable", F.linear, AccumulatingBackward(),
           F.linear, ROWS, quantity="weight", exact=True),
    memory("sine: noise in backward", "not repeatable", torch.sin, sine_backward_with_noise, torch.sin,
            randn(x=(6, 7)), exact=True),
]  # fmt: skip
