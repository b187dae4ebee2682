"""Wrong poolings and upsamplings: x (N, C, H, W)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.compare.gallery.wrong_function import WrongFunction, hand_written, randn, wrong_function


def pooling(
    name: str,
    kinds: str | set[str],
    native: Callable[[Tensor], Tensor],
    backward: Callable[[Tensor, Tensor], Tensor],
    shape: tuple[int, ...] = (2, 3, 6, 8),
    expected_words: str | tuple[str, ...] = (),
) -> WrongFunction:
    return wrong_function(
        f"pooling: {name}", kinds, "x", hand_written(native, backward), native, randn(x=shape), expected_words
    )


def max_pool(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 2)


def overlapping_max_pool(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, 1)


def upsample(g: Tensor) -> Tensor:
    return g.repeat_interleave(2, 2).repeat_interleave(2, 3)


def is_maximum(x: Tensor) -> Tensor:
    return x == upsample(max_pool(x))


def max_pool_backward(g: Tensor, x: Tensor) -> Tensor:
    """The correct backward: the first tied maximum gets the gradient."""
    indices = F.max_pool2d(x, 2, return_indices=True)[1]
    return torch.zeros_like(x).flatten(2).scatter(2, indices.flatten(2), g.flatten(2)).view_as(x)


def backward_sharing_ties(g: Tensor, x: Tensor) -> Tensor:
    mask = is_maximum(x).to(g)
    return upsample(g / (4 * F.avg_pool2d(mask, 2))) * mask


def overlapping_backward_by_scatter(g: Tensor, x: Tensor) -> Tensor:
    """Use ``scatter`` where ``scatter_add`` is needed: several windows may have the same maximum."""
    indices = F.max_pool2d(x, 3, 1, return_indices=True)[1]
    return torch.zeros_like(x).flatten(2).scatter(2, indices.flatten(2), g.flatten(2)).view_as(x)


def padded_avg_pool(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2, padding=1, count_include_pad=False)


def mean_of_channels(x: Tensor) -> Tensor:
    return x.mean((2, 3))


POOLING = [
    pooling("every tied maximum gets the whole gradient", "only at ties", max_pool,
            lambda g, x: upsample(g) * is_maximum(x)),
    pooling("tied maxima share the gradient", "only at ties", max_pool, backward_sharing_ties),
    pooling("the last tied maximum gets the gradient", "only at ties", max_pool,
            lambda g, x: max_pool_backward(g.flip(2, 3), x.flip(2, 3)).flip(2, 3)),
    pooling("one of several overlapping windows contributes", "missing term", overlapping_max_pool,
            overlapping_backward_by_scatter, (2, 2, 7, 6)),
    pooling("row and column of the maximum exchanged", "transposed", max_pool,
            lambda g, x: max_pool_backward(g, x).mT, (2, 3, 6, 6)),
    pooling("indices counted from 1", "shifted", max_pool, lambda g, x: F.pad(max_pool_backward(g, x), (0, 0, 1, -1)),
            expected_words=("row", "rows", "dimension 2")),
    pooling("odd image: the last row and column forgotten", "wrong shape", max_pool, lambda g, x: upsample(g),
            (2, 3, 7, 5)),
    pooling("every element of the window gets the gradient", "unknown", max_pool, lambda g, x: upsample(g)),
    pooling("mean not divided", "constant factor", lambda x: F.avg_pool2d(x, 2), lambda g, x: upsample(g),
            expected_words="4"),
    pooling("mean of a whole channel not divided", "constant factor", mean_of_channels,
            lambda g, x: g[:, :, None, None].expand_as(x), (2, 3, 5, 6), expected_words="30"),
    pooling(
        "mean at the border divided by the whole window", "another operand", padded_avg_pool,
        lambda g, x: upsample(g)[:, :, 1:-1, 1:-1] / 4,
    ),
    pooling("upsampling: one of four copies contributes", "missing term", upsample, lambda g, x: g[:, :, ::2, ::2],
            (2, 3, 3, 4)),
    wrong_function(
        "maximum of two: both get the gradient where they are equal", "only at ties", "a",
        hand_written(torch.maximum, lambda g, a, b: (g * (a >= b), g * (b >= a))), torch.maximum,
        randn(a=(6, 7), b=(6, 7)), also_wrong=("b",),
    ),
]  # fmt: skip
