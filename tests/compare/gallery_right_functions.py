"""Correct hand-written Functions, some of them in ways that look wrong: each of these is right."""

from __future__ import annotations

import math
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from compare.case import Case
from tests.compare.gallery_convolution import replicate_padded
from tests.compare.gallery_cross_entropy import logsumexp, soft_cost
from tests.compare.gallery_dense import attention, attention_backward, tied
from tests.compare.gallery_normalization import CHANNELS, FOR_CHANNELS, backward, batch_norm, layer_norm
from tests.compare.gallery_pooling import largest, overlapping, spread
from tests.compare.gallery_right_native import shape
from tests.compare.gallery_wrong import hand_written, randn


def function(name: str, native: Any, backward: Any, make_inputs: Any, *, exact: bool = True, **more: Any) -> Case:
    return Case(f"Function {name}", hand_written(native, backward, exact=exact), native, make_inputs, **more)


def dense(rng: Random) -> Case:
    """The bias' gradient is left to autograd's engine, which sums what was broadcast."""
    b, i, j = rng.randint(1, 6), rng.randint(1, 5), rng.randint(1, 5)
    summed = rng.random() < 0.5
    return function(
        f"dense {(b, i, j)}", F.linear,
        lambda g, x, w, b: (g @ w, g.T @ x, g.sum(0) if summed else g),
        randn(x=(b, i), weight=(j, i), bias=(j,)), exact=rng.random() < 0.5,
    )  # fmt: skip


def dense_by_loops(rng: Random) -> Case:
    """Each example's weight gradient, summed in the order of the batch."""
    b, i, j = rng.randint(1, 4), rng.randint(1, 4), rng.randint(1, 4)

    def looped(g: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        total = torch.zeros_like(w)
        for n in range(len(x)):
            total += torch.outer(g[n], x[n])
        return torch.stack([g[n] @ w for n in range(len(x))]), total

    return function(f"dense by loops {(b, i, j)}", F.linear, looped, randn(x=(b, i), weight=(j, i)))


def convolution(rng: Random) -> Case:
    """Per-example weight gradients, (B, K, R, P, Q): the engine sums them."""
    x = (rng.randint(1, 3), rng.randint(1, 2), rng.randint(3, 6), rng.randint(3, 6))
    weight, padding = (rng.randint(1, 3), x[1], rng.randint(1, 3), rng.randint(1, 3)), rng.randint(0, 1)

    def gradients(g: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        each = [conv2d_weight(a[None], w.shape, d[None], padding=padding) for a, d in zip(x, g, strict=True)]
        return conv2d_input(x.shape, w, g, padding=padding), torch.stack(each)

    return function(
        f"convolution {x} {weight}", lambda x, w: F.conv2d(x, w, padding=padding), gradients,
        randn(x=x, weight=weight),
    )  # fmt: skip


def replicated(rng: Random) -> Case:
    h, w = rng.randint(3, 6), rng.randint(3, 6)

    def gradients(g: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
        for_x = conv2d_input(padded.shape, weight, g)
        for dim in (2, 3):
            n = for_x.shape[dim]
            first = for_x.narrow(dim, 0, 1) + for_x.narrow(dim, 1, 1)
            last = for_x.narrow(dim, n - 2, 1) + for_x.narrow(dim, n - 1, 1)
            for_x = torch.cat([first, for_x.narrow(dim, 2, n - 4), last], dim)
        return for_x, conv2d_weight(padded, weight.shape, g)

    return function(
        f"convolution with copies around {(h, w)}", replicate_padded, gradients,
        randn(x=(2, 2, h, w), weight=(2, 2, 3, 3)),
    )  # fmt: skip


def pooling(rng: Random) -> Case:
    x = (rng.randint(1, 3), rng.randint(1, 3), 2 * rng.randint(2, 4), 2 * rng.randint(2, 4))
    if rng.random() < 0.5:
        return function(f"pooling {x}", largest, spread, randn(x=x), exact=rng.random() < 0.5)

    def added(g: Tensor, x: Tensor) -> Tensor:
        places = F.max_pool2d(x, 3, 1, return_indices=True)[1]
        return torch.zeros_like(x).flatten(2).scatter_add(2, places.flatten(2), g.flatten(2)).view_as(x)

    return function(f"overlapping pooling {x}", overlapping, added, randn(x=x))


def activation(rng: Random) -> Case:
    name, native, gradient = rng.choice([
        ("relu", F.relu, lambda g, x: g * (x > 0)),
        ("relu by selection", F.relu, lambda g, x: torch.where(x > 0, g, 0)),
        ("abs", torch.abs, lambda g, x: g * x.sign()),
        ("exp", torch.exp, lambda g, x: g * x.exp()),
        ("tanh", torch.tanh, lambda g, x: g * (1 - x.tanh() ** 2)),
        ("square", torch.square, lambda g, x: 2 * g * x),
        ("sign changed", torch.neg, lambda g, x: -g),
        ("identity", torch.clone, lambda g, x: g),
        ("constant", torch.zeros_like, lambda g, x: torch.zeros_like(g)),
        ("gelu", F.gelu, lambda g, x: g * (torch.special.ndtr(x) + x * torch.exp(-x * x / 2) / math.sqrt(math.tau))),
        ("sine and cosine", lambda x: (x.sin(), x.cos()), lambda s, c, x: s * x.cos() - c * x.sin()),
    ])  # fmt: skip
    sizes = shape(rng, 0, 3)
    return function(f"{name} {sizes}", native, gradient, randn(x=sizes))


def halves(rng: Random) -> Case:
    """Derivative 1/2 at 0, which a convention explains."""
    sizes = shape(rng, 2, 3, 9)
    return function(
        f"relu, 1/2 at 0 {sizes}", F.relu, lambda g, x: g * ((x > 0) + 0.5 * (x == 0)), randn(x=sizes),
        conventions={"derivative 1/2 at 0": lambda x: torch.maximum(x, x.new_zeros(()))},
    )  # fmt: skip


def costs(rng: Random) -> Case:
    b, c, scale = rng.choice([1, 3, 6]), rng.randint(2, 5), rng.choice([1, 100])
    if rng.random() < 0.5:
        return function(
            f"logsumexp {(b, c)}", logsumexp, lambda g, x: g[:, None] * x.softmax(1),
            lambda: {"x": scale * torch.randn(b, c)},
        )  # fmt: skip
    return function(
        f"cross-entropy {(b, c)}", soft_cost,
        lambda g, z, y: (g * (z.softmax(1) * y.sum(1, keepdim=True) - y) / b, -g * z.log_softmax(1) / b),
        lambda: {"z": torch.randn(b, c), "y": torch.randn(b, c).softmax(1)}, whole_numbers=False,
    )  # fmt: skip


def norms(rng: Random) -> Case:
    b, n = rng.randint(2, 5), rng.randint(3, 7)
    if rng.random() < 0.5:
        return function("batch norm", batch_norm, backward(*CHANNELS), FOR_CHANNELS)
    inputs = randn(x=(b, n), weight=(n,), bias=(n,))
    return function(f"layer norm {(b, n)}", layer_norm, backward((1,), (1, n)), inputs)


def attentions(rng: Random) -> Case:
    b, t = rng.randint(1, 3), rng.randint(1, 5)
    inputs = randn(q=(b, t, 9), k=(b, t, 9), v=(b, t, 2))
    return function(f"attention {(b, t)}", attention, attention_backward(), inputs)


def shared(rng: Random) -> Case:
    """Two terms for one input; a scale with a number for each example; a temperature without dimensions."""
    b, i, j = rng.randint(1, 5), rng.randint(1, 4), rng.randint(1, 4)
    return rng.choice([
        function(f"tied {(b, i, j)}", tied, lambda g, x, w: (g @ w.T @ w, (x @ w.T).T @ g + (g @ w.T).T @ x),
                 randn(x=(b, i), w=(j, i))),
        function(f"scale {(b, i)}", torch.mul, lambda g, x, s: (g * s, (g * x).sum(1, keepdim=True)),
                 randn(x=(b, i), scale=(b, 1))),
        function(f"temperature {(b, i)}", torch.mul, lambda g, x, t: (g * t, (g * x).sum()), randn(x=(b, i), t=())),
    ])  # fmt: skip


def embedding(rng: Random) -> Case:
    rows, width = rng.randint(2, 6), rng.randint(1, 4)
    index = torch.tensor([rng.randrange(rows) for _ in range(rng.randint(1, 8))])
    return function(
        f"embedding {(rows, width)}", lambda table, index: table[index],
        lambda g, table, index: (torch.zeros_like(table).index_add(0, index, g), None),
        lambda: {"table": torch.randn(rows, width), "index": index},
    )  # fmt: skip


FUNCTIONS = [
    dense, dense_by_loops, convolution, replicated, pooling, activation, halves, costs, norms, attentions, shared,
    embedding,
]  # fmt: skip
