"""Wrong normalisations: what depends on a mean, a variance or a norm has a term for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.compare.gallery_wrong import hand_written, randn, wrong


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weight, bias)


def batch_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, weight, bias, training=True)


def backward(dims: tuple[int, ...], shape: tuple[int, ...], **mistakes: bool) -> Callable[..., Any]:
    """Of both: ``dims`` are what mean and variance are of; weight and bias have ``shape`` beside x."""

    def gradients(g: Tensor, x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        others = [d for d, size in enumerate(shape) if size == 1]
        variance, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
        deviation = (variance + 1e-5).sqrt()
        n = (x - mean) / deviation
        d = for_x = g * w.view(shape)
        if not mistakes.get("no_mean"):
            for_x = for_x - d.mean(dims, keepdim=True)
        if not mistakes.get("no_variance"):
            for_x = for_x - n * (d * n).mean(dims, keepdim=True)
        for_w, for_b = (g * (x if mistakes.get("raw") else n)).sum(others), g.sum(others)
        return (for_x / deviation, for_b, for_w) if mistakes.get("swapped") else (for_x / deviation, for_w, for_b)

    return gradients


ROWS, CHANNELS = ((1,), (1, 6)), ((0, 2, 3), (1, 3, 1, 1))
FOR_ROWS, FOR_CHANNELS = randn(x=(5, 6), weight=(6,), bias=(6,)), randn(x=(4, 3, 3, 2), weight=(3,), bias=(3,))


def unit(x: Tensor) -> Tensor:
    return x / torch.linalg.vector_norm(x, dim=1, keepdim=True)


def unit_rows() -> dict[str, Tensor]:
    return {"x": torch.randn(5, 4)}


NORMALIZATION = [
    wrong(
        "layer norm: mean and variance taken for constants", "missing term", "x",
        hand_written(layer_norm, backward(*ROWS, no_mean=True, no_variance=True)), layer_norm, FOR_ROWS,
    ),
    wrong(
        "layer norm: variance taken for a constant", "missing term", "x",
        hand_written(layer_norm, backward(*ROWS, no_variance=True)), layer_norm, FOR_ROWS,
    ),
    wrong(
        "layer norm: weight gradient of the input as it came", "unknown", "weight",
        hand_written(layer_norm, backward(*ROWS, raw=True)), layer_norm, FOR_ROWS,
    ),
    wrong(
        "layer norm: weight and bias exchanged", "swapped", "weight",
        hand_written(layer_norm, backward(*ROWS, swapped=True)), layer_norm, FOR_ROWS, also=("bias",),
    ),
    wrong(
        "batch norm: mean taken for a constant", "missing term", "x",
        hand_written(batch_norm, backward(*CHANNELS, no_mean=True)), batch_norm, FOR_CHANNELS,
    ),
    wrong(
        "batch norm: running statistics' gradient in training", "missing term", "x",
        hand_written(batch_norm, backward(*CHANNELS, no_mean=True, no_variance=True)), batch_norm, FOR_CHANNELS,
    ),
    wrong(
        "standard deviation: n for n - 1", "constant factor", "x",
        hand_written(torch.std, lambda g, x: g * (x - x.mean()) / (x.numel() * x.std())), torch.std, randn(x=(10,)),
        ("9/10", "0.9"),
    ),
    wrong(
        "unit rows: norm taken for a constant", "missing term", "x",
        hand_written(unit, lambda g, x: g / torch.linalg.vector_norm(x, dim=1, keepdim=True)), unit, unit_rows,
        whole_numbers=False,
    ),
]  # fmt: skip
