"""Wrong convolutions: x (B, R, H, W), weight (K, R, P, Q), bias (K,), correlations as PyTorch has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from tests.compare.gallery_wrong import Wrong, hand_written, randn, wrong

Shape = tuple[int, int, int, int]


def convolution(
    name: str,
    kinds: str | set[str],
    quantity: str,
    x: Shape = (2, 2, 7, 6),
    weight: Shape = (3, 2, 3, 2),
    words: str | tuple[str, ...] = (),
    absent: tuple[str, ...] = (),
    forward: Callable[..., Tensor] | None = None,
    pieces: dict[str, Callable[..., Any]] | None = None,
    **options: Any,
) -> Wrong:
    """``options`` are those of conv2d; ``pieces`` are the formulas of (g, x, w) in place of the right ones."""
    used = {
        "x": lambda g, x, w: conv2d_input(x.shape, w, g, **options),
        "weight": lambda g, x, w: conv2d_weight(x, w.shape, g, **options),
        "bias": lambda g, x, w: g.sum((0, 2, 3)),
    } | (pieces or {})

    def native(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv2d(x, weight, bias, **options)

    def backward(g: Tensor, x: Tensor, w: Tensor, _: Tensor) -> tuple[Tensor, ...]:
        return used["x"](g, x, w), used["weight"](g, x, w), used["bias"](g, x, w)

    inputs = randn(x=x, weight=weight, bias=weight[:1])
    ours = hand_written(forward or native, backward)
    return wrong(f"convolution: {name}", kinds, quantity, ours, native, inputs, words, absent=absent)


def weight_gradient(g: Tensor, x: Tensor, w: Tensor, **options: Any) -> Tensor:
    return conv2d_weight(x, w.shape, g, **options)


def one_to_the_right(g: Tensor, x: Tensor, w: Tensor) -> Tensor:
    """Of the gradient of the padded input, the columns from 0 and not from 1 on."""
    padded = conv2d_input((*x.shape[:2], x.shape[2] + 2, x.shape[3] + 2), w, g)
    return padded[:, :, 1:-1, : x.shape[3]]


def without_last_windows(g: Tensor, x: Tensor, w: Tensor) -> Tensor:
    """``for i in range(I - 1)``: the last row of windows adds nothing."""
    return conv2d_input(x.shape, w, torch.cat([g[:, :, :-1], torch.zeros_like(g[:, :, -1:])], 2))


def without_border_windows(g: Tensor, x: Tensor, w: Tensor) -> Tensor:
    """Windows that reach over the border are left out."""
    inner = torch.zeros_like(g)
    inner[:, :, 1:-1, 1:-1] = g[:, :, 1:-1, 1:-1]
    return conv2d_input(x.shape, w, inner, padding=1)


def interleaved(gradient: Tensor) -> Tensor:
    """(K / groups, groups) read as (groups, K / groups)."""
    return gradient.unflatten(0, (-1, 2)).transpose(0, 1).flatten(0, 1)


def replicate_padded(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), weight)


def replicate_backward(g: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    return conv2d_input(padded.shape, w, g)[:, :, 1:-1, 1:-1], conv2d_weight(padded, w.shape, g)


CONVOLUTION = [
    convolution(
        "weight gradient flipped in rows and columns", "flipped", "weight", words=("rows and columns", "both", "180"),
        pieces={"weight": lambda g, x, w: weight_gradient(g, x, w).flip(2, 3)},
    ),
    convolution(
        "weight gradient flipped in rows", "flipped", "weight", words="rows", absent=("columns", "both"),
        pieces={"weight": lambda g, x, w: weight_gradient(g, x, w).flip(2)},
    ),
    convolution(
        "weight gradient flipped in columns", "flipped", "weight", words="columns", absent=("rows", "both"),
        padding=1, pieces={"weight": lambda g, x, w: weight_gradient(g, x, w, padding=1).flip(3)},
    ),
    convolution(
        "kernel flipped once too often for the input", {"unknown", "flipped"}, "x",
        pieces={"x": lambda g, x, w: conv2d_input(x.shape, w.flip(2, 3), g)},
    ),
    convolution(
        "kernel's rows and columns exchanged", "transposed", "weight", weight=(3, 2, 3, 3),
        pieces={"weight": lambda g, x, w: weight_gradient(g, x, w).mT},
    ),
    convolution(
        "channels in and out exchanged", "transposed", "weight", weight=(2, 2, 3, 2),
        pieces={"weight": lambda g, x, w: weight_gradient(g, x, w).transpose(0, 1)},
    ),
    convolution(
        "groups interleaved", "permuted", "weight", (2, 4, 5, 6), (6, 2, 2, 2), groups=2,
        pieces={"weight": lambda g, x, w: interleaved(weight_gradient(g, x, w, groups=2))},
    ),
    convolution(
        "padding cut off one column too late", "shifted", "x", words=("column", "columns", "dimension 3"),
        absent=("row", "rows"), padding=1, pieces={"x": one_to_the_right},
    ),
    convolution(
        "last row of windows left out", {"only at borders", "missing term"}, "x", (2, 2, 9, 7), (3, 2, 2, 2),
        pieces={"x": without_last_windows},
    ),
    convolution(
        "windows over the border left out", {"only at borders", "missing term"}, "x", (2, 2, 9, 10), (3, 2, 3, 3),
        padding=1, pieces={"x": without_border_windows},
    ),
    wrong(
        "convolution: copies of the border not added back", {"only at borders", "missing term"}, "x",
        hand_written(replicate_padded, replicate_backward), replicate_padded,
        randn(x=(2, 2, 7, 6), weight=(3, 2, 3, 3)),
    ),
    convolution(
        "bias gradient of a mean", "constant factor", "bias", words=("1/50", "0.02"),
        pieces={"bias": lambda g, x, w: g.mean((0, 2, 3))},
    ),
    convolution(
        "weight gradient of the last example alone", "not summed over the batch", "weight", (4, 2, 7, 6),
        pieces={"weight": lambda g, x, w: weight_gradient(g[-1:], x[-1:], w)},
    ),
    convolution(
        "stride without output padding", "wrong shape", "x", (2, 2, 8, 6), stride=2,
        pieces={"x": lambda g, x, w: F.conv_transpose2d(g, w, stride=2)},
    ),
    convolution(
        "sign of the input gradient", "constant factor", "x", words="-1",
        pieces={"x": lambda g, x, w: -conv2d_input(x.shape, w, g)},
    ),
    convolution(
        "kernel flipped in the forward alone", "wrong output", "output",
        forward=lambda x, w, b: F.conv2d(x, w.flip(2, 3), b),
    ),
    convolution(
        "bias added twice", "wrong output", "output", forward=lambda x, w, b: F.conv2d(x, w, b) + b[:, None, None]
    ),
    wrong(
        "channel shuffle: the same shuffle again, not the inverse", "permuted", "x",
        hand_written(
            lambda x: F.channel_shuffle(x, 2), lambda g, x: F.channel_shuffle(g, 2)
        ),
        lambda x: x.unflatten(1, (2, 3)).transpose(1, 2).flatten(1, 2), randn(x=(3, 6, 3, 2)),
    ),
]  # fmt: skip
