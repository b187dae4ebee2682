"""Other formulas for native functions: equal on paper, with different rounding errors.

For 16-bit inputs they compute in float32 and round once, as native functions do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from compare.case import Case
from tests.compare.gallery.right_native import shape
from tests.compare.gallery.wrong_function import randn


def in_float32(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``function`` computing in float32 for 16-bit arguments, and rounding its results to their dtype."""

    def call(*tensors: Tensor) -> Any:
        dtype = next(t.dtype for t in tensors if t.is_floating_point())
        if dtype in (torch.float32, torch.float64):
            return function(*tensors)
        results = function(*(t.float() if t.is_floating_point() else t for t in tensors))
        return tuple(r.to(dtype) for r in results) if isinstance(results, tuple) else results.to(dtype)

    return call


def formula_case(
    name: str, ours: Callable[..., Any], native: Callable[..., Any], make_inputs: Any, **options: Any
) -> Case:
    return Case(f"formula {name}", in_float32(ours), native, make_inputs, **options)


def convolution(rng: Random) -> Case:
    """Convolution as a matrix product of the weight and the unfolded windows."""
    kh, kw, h, w, c_out = (
        rng.randint(1, 3),
        rng.randint(1, 3),
        rng.randint(4, 7),
        rng.randint(4, 7),
        rng.randint(1, 3),
    )
    stride, padding, c_in = rng.randint(1, 2), rng.randint(0, 1), rng.randint(1, 3)

    def by_windows(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        columns = F.unfold(x, (kh, kw), padding=padding, stride=stride)
        z = weight.flatten(1) @ columns + bias[:, None]
        return z.unflatten(2, ((h + 2 * padding - kh) // stride + 1, -1))

    return formula_case(
        f"conv2d by unfold {(c_in, h, w)} {(c_out, c_in, kh, kw)}",
        by_windows,
        lambda x, weight, bias: F.conv2d(x, weight, bias, stride, padding),
        randn(x=(2, c_in, h, w), weight=(c_out, c_in, kh, kw), bias=(c_out,)),
    )


def pooling(rng: Random) -> Case:
    """Pooling of unfolded windows; the first tied maximum gets the gradient, as in native pooling."""
    size, x = rng.randint(2, 3), (rng.randint(1, 3), rng.randint(1, 2), rng.randint(4, 7), rng.randint(4, 7))
    stride = rng.randint(1, 3)

    def by_windows(x: Tensor) -> Tensor:
        windows = x.unfold(2, size, stride).unfold(3, size, stride).flatten(4)
        first = (windows == windows.amax(4, keepdim=True)).to(torch.int8).argmax(4, keepdim=True)
        return windows.gather(4, first).squeeze(4)

    if rng.random() < 0.5:
        return formula_case(f"max_pool2d {x}", by_windows, lambda x: F.max_pool2d(x, size, stride), randn(x=x))
    return formula_case(
        f"avg_pool2d {x}",
        lambda x: x.unfold(2, size, stride).unfold(3, size, stride).mean((4, 5)),
        lambda x: F.avg_pool2d(x, size, stride),
        randn(x=x),
    )


def softmax(rng: Random) -> Case:
    x, scale = (rng.randint(1, 5), rng.randint(1, 6)), rng.choice([1, 30, 1000])
    name, ours, native = rng.choice([
        ("softmax", lambda x: (x - torch.logsumexp(x, 1, keepdim=True)).exp(), lambda x: x.softmax(1)),
        ("log_softmax", lambda x: x - torch.logsumexp(x, 1, keepdim=True), lambda x: x.log_softmax(1)),
        ("logsumexp", logsumexp_by_maximum, lambda x: x.logsumexp(1)),
    ])  # fmt: skip
    return formula_case(f"{name} {x} times {scale}", ours, native, lambda: {"x": scale * torch.randn(x)})


def logsumexp_by_maximum(x: Tensor) -> Tensor:
    maximum = x.amax(1, keepdim=True).detach()
    return (x - maximum).exp().sum(1).log() + maximum.squeeze(1)


def cross_entropy(rng: Random) -> Case:
    b, c, scale = rng.choice([1, 4, 6]), rng.randint(2, 5), rng.choice([1, 50])
    labels = torch.tensor([rng.randrange(c) for _ in range(b)])
    reduction = rng.choice(["mean", "sum", "none"])

    def gathered(z: Tensor, labels: Tensor) -> Tensor:
        losses = -z.log_softmax(1).gather(1, labels[:, None]).squeeze(1)
        return {"mean": losses.mean, "sum": losses.sum, "none": losses.clone}[reduction]()

    return formula_case(
        f"cross_entropy {(b, c)} {reduction}",
        gathered,
        lambda z, labels: F.cross_entropy(z, labels, reduction=reduction),
        lambda: {"z": scale * torch.randn(b, c), "labels": labels},
    )


def normalization(rng: Random) -> Case:
    b, n = rng.randint(2, 5), rng.randint(3, 6)

    def layer(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        return centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt() * weight + bias

    if rng.random() < 0.6:
        return formula_case(
            f"layer_norm {(b, n)}", layer, lambda x, w, b: F.layer_norm(x, x.shape[1:], w, b),
            randn(x=(b, n), weight=(n,), bias=(n,)),
        )  # fmt: skip
    return formula_case(
        f"rms_norm {(b, n)}",
        lambda x, weight: x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-5) * weight,
        lambda x, weight: F.rms_norm(x, x.shape[1:], weight, 1e-5),
        randn(x=(b, n), weight=(n,)),
    )


def products(rng: Random) -> Case:
    b, m, n, k = (rng.randint(1, 5) for _ in range(4))
    name, ours, native, shapes = rng.choice([
        ("linear", lambda x, w, b: torch.einsum("bi,ji->bj", x, w) + b, F.linear, ((m, n), (k, n), (k,))),
        ("bmm", lambda x, y: (x[..., None] * y[:, None]).sum(2), torch.bmm, ((b, m, n), (b, n, k))),
        ("attention", attention, F.scaled_dot_product_attention, ((b, m, n), (b, k, n), (b, k, n))),
        ("cumsum", lambda x: x @ torch.ones(n, n).triu().to(x), lambda x: x.cumsum(1), ((m, n),)),
        ("outer", lambda x, y: x[:, None] * y, torch.outer, ((m,), (n,))),
    ])  # fmt: skip
    return formula_case(f"{name} {shapes}", ours, native, randn(**{f"t{i}": s for i, s in enumerate(shapes)}))


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1) @ v


def sigmoid_by_sign(x: Tensor) -> Tensor:
    """Use on each side of 0 the form in which no terms cancel."""
    return torch.where(x > 0, 1 / (1 + torch.exp(-x)), torch.exp(x) / (1 + torch.exp(x)))


def elementwise(rng: Random) -> Case:
    sizes = shape(rng, 0, 3)
    name, ours, native = rng.choice([
        ("sigmoid", sigmoid_by_sign, torch.sigmoid),
        ("logsigmoid", lambda x: -torch.logaddexp(torch.zeros_like(x), -x), F.logsigmoid),
        ("gelu", lambda x: x * torch.special.ndtr(x), F.gelu),
        ("silu", lambda x: x * torch.sigmoid(x), F.silu),
        ("relu", lambda x: torch.where(x > 0, x, 0), torch.relu),
        ("leaky_relu", lambda x: torch.where(x > 0, x, x / 8), lambda x: F.leaky_relu(x, 0.125)),
        ("square", lambda x: x * x, torch.square),
        ("softplus", lambda x: torch.logaddexp(x, torch.zeros_like(x)), F.softplus),
        ("hardtanh", lambda x: torch.where(x.abs() < 1.3, x, x.sign() * 1.3), lambda x: F.hardtanh(x, -1.3, 1.3)),
    ])  # fmt: skip
    return formula_case(f"{name} {sizes}", ours, native, randn(x=sizes))


def several_layers(rng: Random) -> Case:
    """Convolution, ReLU and pooling, or a perceptron. Rounding may carry a value across a kink."""
    if rng.random() < 0.5:
        h, w, c_out = rng.randint(5, 8), rng.randint(5, 8), rng.randint(1, 3)

        def by_windows(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            z = torch.einsum("brijpq,krpq->bkij", x.unfold(2, 3, 1).unfold(3, 2, 1), weight) + bias[:, None, None]
            return F.max_pool2d(z * (z > 0), 2)

        return formula_case(
            f"conv, ReLU, pool {(h, w, c_out)}", by_windows,
            lambda x, weight, bias: F.max_pool2d(F.conv2d(x, weight, bias).relu(), 2),
            randn(x=(2, 2, h, w), weight=(c_out, 2, 3, 2), bias=(c_out,)), kinks=True,
        )  # fmt: skip
    b, i, h, j = rng.randint(1, 5), rng.randint(2, 6), rng.randint(2, 8), rng.randint(1, 4)

    def perceptron(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor) -> Tensor:
        return F.linear(F.linear(x, w1, b1).relu(), w2)

    return formula_case(
        f"perceptron {(b, i, h, j)}",
        lambda x, w1, b1, w2: torch.einsum("bh,jh->bj", torch.clamp(x @ w1.T + b1, min=0), w2),
        perceptron,
        randn(x=(b, i), w1=(h, i), b1=(h,), w2=(j, h)),
        kinks=True,
        conventions={
            "derivative of clamp at 0": lambda x, w1, b1, w2: F.linear(F.linear(x, w1, b1).clamp(min=0), w2)
        },
    )


def reordering(rng: Random) -> Case:
    """Reorderings, whose gradients are exact."""
    g, k, h, w = rng.randint(2, 3), rng.randint(1, 3), rng.randint(1, 3), rng.randint(1, 3)
    name, ours, native = rng.choice([
        ("channel_shuffle", lambda x: x.unflatten(1, (g, -1)).transpose(1, 2).flatten(1, 2),
         lambda x: x[:, torch.arange(g * k).view(g, k).T.flatten()]),
        ("upsample", lambda x: x.repeat_interleave(2, 2).repeat_interleave(2, 3),
         lambda x: F.interpolate(x, scale_factor=2)),
        ("roll", lambda x: torch.cat([x[:, -1:], x[:, :-1]], 1), lambda x: x.roll(1, 1)),
    ])  # fmt: skip
    return formula_case(f"{name} {(g, k, h, w)}", ours, native, randn(x=(2, g * k, h, w)))


FORMULAS = [
    convolution,
    pooling,
    softmax,
    cross_entropy,
    normalization,
    products,
    elementwise,
    several_layers,
    reordering,
]
