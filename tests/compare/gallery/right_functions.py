"""Correct hand-written Functions, some of which look wrong at first sight."""

from __future__ import annotations

import math
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from compare.case import Case
from tests.compare.gallery.convolution import replicate_padded_conv2d
from tests.compare.gallery.cross_entropy import cross_entropy_of_probabilities, logsumexp
from tests.compare.gallery.dense import attention, attention_backward, tied_autoencoder
from tests.compare.gallery.normalization import CHANNEL_INPUTS, CHANNELS, batch_norm, layer_norm, norm_backward
from tests.compare.gallery.pooling import max_pool, max_pool_backward, overlapping_max_pool
from tests.compare.gallery.right_native import shape
from tests.compare.gallery.wrong_function import hand_written, randn


def function_case(
    name: str, native: Any, backward: Any, make_inputs: Any, *, exact: bool = True, **options: Any
) -> Case:
    return Case(f"Function {name}", hand_written(native, backward, exact=exact), native, make_inputs, **options)


def dense(rng: Random) -> Case:
    """Dense layer; in some draws backward returns the unsummed gradient of the bias, and autograd sums it."""
    n, in_features, out_features = rng.randint(1, 6), rng.randint(1, 5), rng.randint(1, 5)
    summed = rng.random() < 0.5
    return function_case(
        f"dense {(n, in_features, out_features)}", F.linear,
        lambda g, x, w, b: (g @ w, g.T @ x, g.sum(0) if summed else g),
        randn(x=(n, in_features), weight=(out_features, in_features), bias=(out_features,)), exact=rng.random() < 0.5,
    )  # fmt: skip


def dense_by_loops(rng: Random) -> Case:
    """Dense layer whose weight gradient is a loop over the examples."""
    n, in_features, out_features = rng.randint(1, 4), rng.randint(1, 4), rng.randint(1, 4)

    def looped(g: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        total = torch.zeros_like(w)
        for grad, row in zip(g, x, strict=True):
            total += torch.outer(grad, row)
        return torch.stack([grad @ w for grad in g]), total

    return function_case(
        f"dense by loops {(n, in_features, out_features)}",
        F.linear,
        looped,
        randn(x=(n, in_features), weight=(out_features, in_features)),
    )


def convolution(rng: Random) -> Case:
    """Convolution that returns per-example weight gradients, (N, C_out, C_in, kH, kW), which autograd sums."""
    x = (rng.randint(1, 3), rng.randint(1, 2), rng.randint(3, 6), rng.randint(3, 6))
    weight, padding = (rng.randint(1, 3), x[1], rng.randint(1, 3), rng.randint(1, 3)), rng.randint(0, 1)

    def gradients(g: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        per_example = [conv2d_weight(a[None], w.shape, d[None], padding=padding) for a, d in zip(x, g, strict=True)]
        return conv2d_input(x.shape, w, g, padding=padding), torch.stack(per_example)

    return function_case(
        f"convolution {x} {weight}", lambda x, w: F.conv2d(x, w, padding=padding), gradients,
        randn(x=x, weight=weight),
    )  # fmt: skip


def replicate_padded(rng: Random) -> Case:
    h, w = rng.randint(3, 6), rng.randint(3, 6)

    def gradients(g: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
        grad_x = conv2d_input(padded.shape, weight, g)
        for dim in (2, 3):
            n = grad_x.shape[dim]
            first = grad_x.narrow(dim, 0, 1) + grad_x.narrow(dim, 1, 1)
            last = grad_x.narrow(dim, n - 2, 1) + grad_x.narrow(dim, n - 1, 1)
            grad_x = torch.cat([first, grad_x.narrow(dim, 2, n - 4), last], dim)
        return grad_x, conv2d_weight(padded, weight.shape, g)

    return function_case(
        f"convolution with replicate padding {(h, w)}", replicate_padded_conv2d, gradients,
        randn(x=(2, 2, h, w), weight=(2, 2, 3, 3)),
    )  # fmt: skip


def pooling(rng: Random) -> Case:
    x = (rng.randint(1, 3), rng.randint(1, 3), 2 * rng.randint(2, 4), 2 * rng.randint(2, 4))
    if rng.random() < 0.5:
        return function_case(f"pooling {x}", max_pool, max_pool_backward, randn(x=x), exact=rng.random() < 0.5)

    def scatter_add(g: Tensor, x: Tensor) -> Tensor:
        indices = F.max_pool2d(x, 3, 1, return_indices=True)[1]
        return torch.zeros_like(x).flatten(2).scatter_add(2, indices.flatten(2), g.flatten(2)).view_as(x)

    return function_case(f"overlapping pooling {x}", overlapping_max_pool, scatter_add, randn(x=x))


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
    return function_case(f"{name} {sizes}", native, gradient, randn(x=sizes))


def relu_half(rng: Random) -> Case:
    """ReLU with the derivative 1/2 at 0, which a convention explains."""
    sizes = shape(rng, 2, 3, 9)
    return function_case(
        f"relu, 1/2 at 0 {sizes}", F.relu, lambda g, x: g * ((x > 0) + 0.5 * (x == 0)), randn(x=sizes),
        conventions={"derivative 1/2 at 0": lambda x: torch.maximum(x, x.new_zeros(()))},
    )  # fmt: skip


def losses(rng: Random) -> Case:
    b, c, scale = rng.choice([1, 3, 6]), rng.randint(2, 5), rng.choice([1, 100])
    if rng.random() < 0.5:
        return function_case(
            f"logsumexp {(b, c)}", logsumexp, lambda g, x: g[:, None] * x.softmax(1),
            lambda: {"x": scale * torch.randn(b, c)},
        )  # fmt: skip
    return function_case(
        f"cross-entropy {(b, c)}", cross_entropy_of_probabilities,
        lambda g, z, y: (g * (z.softmax(1) * y.sum(1, keepdim=True) - y) / b, -g * z.log_softmax(1) / b),
        lambda: {"z": torch.randn(b, c), "y": torch.randn(b, c).softmax(1)}, whole_numbers=False,
    )  # fmt: skip


def normalization(rng: Random) -> Case:
    b, n = rng.randint(2, 5), rng.randint(3, 7)
    if rng.random() < 0.5:
        return function_case("batch norm", batch_norm, norm_backward(*CHANNELS), CHANNEL_INPUTS)
    inputs = randn(x=(b, n), weight=(n,), bias=(n,))
    return function_case(f"layer norm {(b, n)}", layer_norm, norm_backward((1,), (1, n)), inputs)


def attention_case(rng: Random) -> Case:
    b, t = rng.randint(1, 3), rng.randint(1, 5)
    inputs = randn(q=(b, t, 9), k=(b, t, 9), v=(b, t, 2))
    return function_case(f"attention {(b, t)}", attention, attention_backward(), inputs)


def several_terms(rng: Random) -> Case:
    """An input with two terms; a scale with one number per example; a temperature without dimensions."""
    n, in_features, out_features = rng.randint(1, 5), rng.randint(1, 4), rng.randint(1, 4)
    return rng.choice([
        function_case(f"tied {(n, in_features, out_features)}", tied_autoencoder,
                lambda g, x, w: (g @ w.T @ w, (x @ w.T).T @ g + (g @ w.T).T @ x),
                 randn(x=(n, in_features), w=(out_features, in_features))),
        function_case(f"scale {(n, in_features)}", torch.mul, lambda g, x, s: (g * s, (g * x).sum(1, keepdim=True)),
                 randn(x=(n, in_features), scale=(n, 1))),
        function_case(f"temperature {(n, in_features)}", torch.mul, lambda g, x, t: (g * t, (g * x).sum()),
                randn(x=(n, in_features), t=())),
    ])  # fmt: skip


def embedding(rng: Random) -> Case:
    rows, width = rng.randint(2, 6), rng.randint(1, 4)
    index = torch.tensor([rng.randrange(rows) for _ in range(rng.randint(1, 8))])
    return function_case(
        f"embedding {(rows, width)}", lambda table, index: table[index],
        lambda g, table, index: (torch.zeros_like(table).index_add(0, index, g), None),
        lambda: {"table": torch.randn(rows, width), "index": index},
    )  # fmt: skip


FUNCTIONS = [
    dense, dense_by_loops, convolution, replicate_padded, pooling, activation, relu_half, losses, normalization,
    attention_case, several_terms,
    embedding,
]  # fmt: skip
