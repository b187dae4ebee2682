"""Functions whose formula is right: what is wrong shows in one dtype, in one layout, or the second time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from tests.compare.gallery_wrong import Wrong, hand_written, randn, wrong


def in_memory_order(t: Tensor) -> Tensor:
    """What a kernel reads that takes a pointer and a shape, and asks nothing about strides but whether one is 0."""
    t = t.contiguous() if 0 in t.stride() else t
    return t.as_strided(t.shape, torch.empty(t.shape, device="meta").stride())


def convolution_backward(g: Tensor, x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    x64, w64, g64 = x.double(), w.double(), g.double()
    return conv2d_input(x.shape, w64, g64), conv2d_weight(x64, w.shape, g64), in_memory_order(g).sum((0, 2, 3))


def dense_backward(g: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    return g @ w, g.T @ in_memory_order(x)


def square_of_a_sum(g: Tensor, x: Tensor) -> Tensor:
    """A short cut for what ``sum`` sends back, which is all ones if nothing comes after ``sum``."""
    g = torch.ones_like(g) if g.stride() == (0, 0) else g
    return 2 * g.double() * x


def in_single(g: Tensor, x: Tensor) -> Tensor:
    y = x.float().tanh()
    return g.float() * (1 - y * y)


def mean_of_rows(x: Tensor) -> Tensor:
    return x.mean(0)


def counting(g: Tensor, x: Tensor) -> Tensor:
    """Counts the rows in x's own dtype: 256 + 1 is 256 in bfloat16."""
    count = x.new_zeros(())
    for _ in range(len(x)):
        count += 1
    return (g.double() / count.double()).expand_as(x)


def length_in_own_dtype(g: Tensor, x: Tensor) -> Tensor:
    """x / √Σx² with x² in x's own dtype: more than 65504 is infinite in float16."""
    squares = x * x
    return g.double() * x.double() / squares.double().sum().to(x.dtype).double().sqrt()


def root_mean_square(x: Tensor) -> Tensor:
    each = x.double()
    return (each / (each.square().mean(1, keepdim=True) + 1e-8).sqrt()).to(x.dtype)


def too_small_an_epsilon(g: Tensor, x: Tensor) -> Tensor:
    """1e-8 is 0 in float16."""
    square = x.double().square().mean(1, keepdim=True).to(x.dtype) + 1e-8
    g, x, square = g.double(), x.double(), square.double()
    return (g - x * (g * x).mean(1, keepdim=True) / square) / square.sqrt()


def with_an_empty_row() -> dict[str, Tensor]:
    x = torch.randn(5, 4)
    x[2] = 0
    return {"x": x}


def clamp_in_place(x: Tensor) -> Tensor:
    return x.clamp_(min=0).clone()


def zeroing(g: Tensor, x: Tensor) -> Tensor:
    g[x <= 0] = 0
    return g


def through_numpy(x: Tensor) -> Tensor:
    return torch.from_numpy(x.detach().numpy() ** 2)


class Buffer:
    """A dense layer's backward that adds to a buffer made once."""

    def __init__(self) -> None:
        self.weight: Tensor | None = None

    def __call__(self, g: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        self.weight = torch.zeros_like(w) if self.weight is None else self.weight
        self.weight += g.T @ x
        return g @ w, self.weight.clone()


def dithered(g: Tensor, x: Tensor) -> Tensor:
    return g * x.cos() + 0.01 * torch.rand_like(x)


def memory(
    name: str,
    kinds: str | set[str],
    forward: Callable[..., Tensor],
    backward: Callable[..., Any],
    native: Callable[..., Tensor],
    inputs: Callable[[], dict[str, Tensor]],
    quantity: str = "x",
    words: str | tuple[str, ...] = (),
    exact: bool = False,
) -> Wrong:
    return wrong(name, kinds, quantity, hand_written(forward, backward, exact=exact), native, inputs, words)


IMAGES = randn(x=(2, 2, 6, 5), weight=(3, 2, 3, 2), bias=(3,))
ROWS = randn(x=(5, 4), weight=(3, 4))

MEMORY = [
    memory("convolution: bias gradient in memory order", "only in one layout", F.conv2d, convolution_backward,
           F.conv2d, IMAGES, quantity="bias", words="channels_last"),
    memory("dense: input read in memory order", "only in one layout", F.linear, dense_backward, F.linear, ROWS,
           quantity="weight", words="transposed"),
    memory("square: a short cut for sums", "only in one layout", torch.square, square_of_a_sum, torch.square,
           randn(x=(5, 4)), words="expanded"),
    memory("sine: a view where a reshape is needed", {"raises", "only in one layout"}, torch.sin,
           lambda g, x: (g.view(-1) * x.cos().reshape(-1)).view(x.shape), torch.sin, randn(x=(2, 3, 4, 5)),
           quantity=""),
    memory("tanh: float32 whatever comes", "only in one dtype", torch.tanh, in_single, torch.tanh,
           randn(x=(6, 7)), words="float64"),
    memory("mean: counts in bfloat16", "only in one dtype", mean_of_rows, counting, mean_of_rows, randn(x=(300, 2)),
           words="bfloat16"),
    memory("length: squares too large for float16", "only in one dtype", torch.linalg.vector_norm,
           length_in_own_dtype, torch.linalg.vector_norm, lambda: {"x": 400 + 50 * torch.randn(6)}, words="float16"),
    memory("root mean square: 1e-8 in float16", {"only in one dtype", "not finite"}, root_mean_square,
           too_small_an_epsilon, root_mean_square, with_an_empty_row, words="float16"),
    memory("square through NumPy, which has no bfloat16", {"only in one dtype", "raises"}, through_numpy,
           lambda g, x: 2 * g * x, torch.square, randn(x=(6, 7)), quantity="", words="bfloat16", exact=True),
    memory("ReLU in place", "changes its input", clamp_in_place, lambda g, x: g * (x > 0), F.relu, randn(x=(6, 7)),
           quantity=""),
    memory("ReLU: the incoming gradient set to 0", "changes the incoming gradient", F.relu, zeroing, F.relu,
           randn(x=(6, 7)), quantity=""),
    memory("dense: weight gradient in a buffer that keeps the last one", "not repeatable", F.linear, Buffer(),
           F.linear, ROWS, quantity="weight", exact=True),
    memory("sine: dithered", "not repeatable", torch.sin, dithered, torch.sin, randn(x=(6, 7)), exact=True),
]  # fmt: skip
