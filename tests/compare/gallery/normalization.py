"""Wrong normalizations: the backward has a term for each mean, variance or norm in the forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.compare.gallery.wrong_function import hand_written, randn, wrong_function


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weight, bias)


def batch_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, weight, bias, training=True)


def norm_backward(dims: tuple[int, ...], shape: tuple[int, ...], **mistakes: bool) -> Callable[..., Any]:
    """Backward of both norms: mean and variance are over ``dims``; weight and bias broadcast as ``shape``."""

    def gradients(g: Tensor, x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        reduced_dims = [d for d, size in enumerate(shape) if size == 1]
        variance, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
        deviation = (variance + 1e-5).sqrt()
        n = (x - mean) / deviation
        d = grad_x = g * w.view(shape)
        if not mistakes.get("no_mean"):
            grad_x = grad_x - d.mean(dims, keepdim=True)
        if not mistakes.get("no_variance"):
            grad_x = grad_x - n * (d * n).mean(dims, keepdim=True)
        grad_w = (g * (x if mistakes.get("raw") else n)).sum(reduced_dims)
        grad_b = g.sum(reduced_dims)
        if mistakes.get("swapped"):
            grad_w, grad_b = grad_b, grad_w
        return grad_x / deviation, grad_w, grad_b

    return gradients


ROWS, CHANNELS = ((1,), (1, 6)), ((0, 2, 3), (1, 3, 1, 1))
ROW_INPUTS, CHANNEL_INPUTS = randn(x=(5, 6), weight=(6,), bias=(6,)), randn(x=(4, 3, 3, 2), weight=(3,), bias=(3,))


def normalize_rows(x: Tensor) -> Tensor:
    return x / torch.linalg.vector_norm(x, dim=1, keepdim=True)


def random_rows() -> dict[str, Tensor]:
    return {"x": torch.randn(5, 4)}


NORMALIZATION = [
    wrong_function(
        "layer norm: mean and variance taken for constants", "missing term", "x",
        hand_written(layer_norm, norm_backward(*ROWS, no_mean=True, no_variance=True)), layer_norm, ROW_INPUTS,
    ),
    wrong_function(
        "layer norm: variance taken for a constant", "missing term", "x",
        hand_written(layer_norm, norm_backward(*ROWS, no_variance=True)), layer_norm, ROW_INPUTS,
    ),
    wrong_function(
        "layer norm: weight gradient from the input, not normalized", "another operand", "weight",
        hand_written(layer_norm, norm_backward(*ROWS, raw=True)), layer_norm, ROW_INPUTS,
    ),
    wrong_function(
        "layer norm: weight and bias exchanged", "swapped", "weight",
        hand_written(layer_norm, norm_backward(*ROWS, swapped=True)), layer_norm, ROW_INPUTS, also_wrong=("bias",),
    ),
    wrong_function(
        "batch norm: mean taken for a constant", "missing term", "x",
        hand_written(batch_norm, norm_backward(*CHANNELS, no_mean=True)), batch_norm, CHANNEL_INPUTS,
    ),
    wrong_function(
        "batch norm: mean and variance taken for constants", "missing term", "x",
        hand_written(batch_norm, norm_backward(*CHANNELS, no_mean=True, no_variance=True)), batch_norm,
        CHANNEL_INPUTS,
    ),
    wrong_function(
        "standard deviation: n instead of n - 1", "constant factor", "x",
        hand_written(torch.std, lambda g, x: g * (x - x.mean()) / (x.numel() * x.std())), torch.std, randn(x=(10,)),
        ("9/10", "0.9"),
    ),
    wrong_function(
        "unit rows: norm taken for a constant", "missing term", "x",
        hand_written(normalize_rows, lambda g, x: g / torch.linalg.vector_norm(x, dim=1, keepdim=True)),
        normalize_rows, random_rows,
        whole_numbers=False,
    ),
]  # fmt: skip
