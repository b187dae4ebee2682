"""Wrong convolutions (correlations, as in PyTorch).

Shapes: x (N, C_in, H, W), weight (C_out, C_in, kH, kW), bias (C_out,).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from tests.compare.gallery.wrong_function import WrongFunction, hand_written, randn, wrong_function

Shape = tuple[int, int, int, int]


def convolution(
    name: str,
    kinds: str | set[str],
    quantity: str,
    x: Shape = (2, 2, 7, 6),
    weight: Shape = (3, 2, 3, 2),
    expected_words: str | tuple[str, ...] = (),
    excluded_words: tuple[str, ...] = (),
    forward: Callable[..., Tensor] | None = None,
    wrong_formulas: dict[str, Callable[..., Any]] | None = None,
    **options: Any,
) -> WrongFunction:
    """Make an entry; ``wrong_formulas`` of (g, x, w) replace the correct ones, ``options`` are those of conv2d."""
    formulas = {
        "x": lambda g, x, w: conv2d_input(x.shape, w, g, **options),
        "weight": lambda g, x, w: conv2d_weight(x, w.shape, g, **options),
        "bias": lambda g, x, w: g.sum((0, 2, 3)),
    } | (wrong_formulas or {})

    def native(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv2d(x, weight, bias, **options)

    def backward(g: Tensor, x: Tensor, w: Tensor, _: Tensor) -> tuple[Tensor, ...]:
        return formulas["x"](g, x, w), formulas["weight"](g, x, w), formulas["bias"](g, x, w)

    inputs = randn(x=x, weight=weight, bias=weight[:1])
    ours = hand_written(forward or native, backward)
    return wrong_function(
        f"convolution: {name}", kinds, quantity, ours, native, inputs, expected_words, excluded_words=excluded_words
    )


def conv2d_grad_weight(g: Tensor, x: Tensor, w: Tensor, **options: Any) -> Tensor:
    return conv2d_weight(x, w.shape, g, **options)


def crop_from_column_0(g: Tensor, x: Tensor, w: Tensor) -> Tensor:
    """Crop the padded input's gradient from column 0 instead of column 1."""
    padded = conv2d_input((*x.shape[:2], x.shape[2] + 2, x.shape[3] + 2), w, g)
    return padded[:, :, 1:-1, : x.shape[3]]


def without_last_windows(g: Tensor, x: Tensor, w: Tensor) -> Tensor:
    """Leave out the last row of windows: ``for i in range(H_out - 1)``."""
    return conv2d_input(x.shape, w, torch.cat([g[:, :, :-1], torch.zeros_like(g[:, :, -1:])], 2))


def without_border_windows(g: Tensor, x: Tensor, w: Tensor) -> Tensor:
    """Leave out the windows that reach over the border."""
    inner = torch.zeros_like(g)
    inner[:, :, 1:-1, 1:-1] = g[:, :, 1:-1, 1:-1]
    return conv2d_input(x.shape, w, inner, padding=1)


def interleave_groups(gradient: Tensor) -> Tensor:
    """Read (C_out / groups, groups) as (groups, C_out / groups)."""
    return gradient.unflatten(0, (-1, 2)).transpose(0, 1).flatten(0, 1)


def replicate_padded_conv2d(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), weight)


def replicate_padded_backward_cropped(g: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    return conv2d_input(padded.shape, w, g)[:, :, 1:-1, 1:-1], conv2d_weight(padded, w.shape, g)


CONVOLUTION = [
    convolution(
        "weight gradient flipped in rows and columns", "flipped", "weight",
        expected_words=("rows and columns", "both", "180"),
        wrong_formulas={"weight": lambda g, x, w: conv2d_grad_weight(g, x, w).flip(2, 3)},
    ),
    convolution(
        "weight gradient flipped in rows", "flipped", "weight", expected_words="rows",
        excluded_words=("columns", "both"),
        wrong_formulas={"weight": lambda g, x, w: conv2d_grad_weight(g, x, w).flip(2)},
    ),
    convolution(
        "weight gradient flipped in columns", "flipped", "weight", expected_words="columns",
        excluded_words=("rows", "both"),
        padding=1, wrong_formulas={"weight": lambda g, x, w: conv2d_grad_weight(g, x, w, padding=1).flip(3)},
    ),
    convolution(
        "kernel flipped once too often in the input gradient", {"unknown", "flipped"}, "x",
        wrong_formulas={"x": lambda g, x, w: conv2d_input(x.shape, w.flip(2, 3), g)},
    ),
    convolution(
        "kernel's rows and columns exchanged", "transposed", "weight", weight=(3, 2, 3, 3),
        wrong_formulas={"weight": lambda g, x, w: conv2d_grad_weight(g, x, w).mT},
    ),
    convolution(
        "channels in and out exchanged", "transposed", "weight", weight=(2, 2, 3, 2),
        wrong_formulas={"weight": lambda g, x, w: conv2d_grad_weight(g, x, w).transpose(0, 1)},
    ),
    convolution(
        "groups interleaved", "permuted", "weight", (2, 4, 5, 6), (6, 2, 2, 2), groups=2,
        wrong_formulas={"weight": lambda g, x, w: interleave_groups(conv2d_grad_weight(g, x, w, groups=2))},
    ),
    convolution(
        "padding cropped one column too far left", "shifted", "x",
        expected_words=("column", "columns", "dimension 3"),
        excluded_words=("row", "rows"), padding=1, wrong_formulas={"x": crop_from_column_0},
    ),
    convolution(
        "last row of windows left out", {"only at borders", "missing term"}, "x", (2, 2, 9, 7), (3, 2, 2, 2),
        wrong_formulas={"x": without_last_windows},
    ),
    convolution(
        "windows that reach over the border left out", {"only at borders", "missing term"}, "x", (2, 2, 9, 10),
        (3, 2, 3, 3),
        padding=1, wrong_formulas={"x": without_border_windows},
    ),
    wrong_function(
        "convolution: gradient of the replicated border not added", {"another operand", "missing term"}, "x",
        hand_written(replicate_padded_conv2d, replicate_padded_backward_cropped), replicate_padded_conv2d,
        randn(x=(2, 2, 7, 6), weight=(3, 2, 3, 3)),
    ),
    convolution(
        "bias gradient of a mean", "constant factor", "bias", expected_words=("1/50", "0.02"),
        wrong_formulas={"bias": lambda g, x, w: g.mean((0, 2, 3))},
    ),
    convolution(
        "weight gradient of the last example alone", "not summed over the batch", "weight", (4, 2, 7, 6),
        wrong_formulas={"weight": lambda g, x, w: conv2d_grad_weight(g[-1:], x[-1:], w)},
    ),
    convolution(
        "stride without output padding", "wrong shape", "x", (2, 2, 8, 6), stride=2,
        wrong_formulas={"x": lambda g, x, w: F.conv_transpose2d(g, w, stride=2)},
    ),
    convolution(
        "sign of the input gradient", "constant factor", "x", expected_words="-1",
        wrong_formulas={"x": lambda g, x, w: -conv2d_input(x.shape, w, g)},
    ),
    convolution(
        "kernel flipped in the forward alone", "wrong output", "output",
        forward=lambda x, w, b: F.conv2d(x, w.flip(2, 3), b),
    ),
    convolution(
        "bias added twice", "wrong output", "output", forward=lambda x, w, b: F.conv2d(x, w, b) + b[:, None, None]
    ),
    wrong_function(
        "channel shuffle: the same shuffle again, not the inverse", "permuted", "x",
        hand_written(
            lambda x: F.channel_shuffle(x, 2), lambda g, x: F.channel_shuffle(g, 2)
        ),
        lambda x: x.unflatten(1, (2, 3)).transpose(1, 2).flatten(1, 2), randn(x=(3, 6, 3, 2)),
    ),
]  # fmt: skip
