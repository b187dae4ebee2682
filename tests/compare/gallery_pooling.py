"""Wrong poolings, and the enlargements that undo them: x (B, K, H, W)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.compare.gallery_wrong import Wrong, hand_written, randn, wrong


def pooling(
    name: str,
    kinds: str | set[str],
    native: Callable[[Tensor], Tensor],
    backward: Callable[[Tensor, Tensor], Tensor],
    shape: tuple[int, ...] = (2, 3, 6, 8),
    words: str | tuple[str, ...] = (),
) -> Wrong:
    return wrong(f"pooling: {name}", kinds, "x", hand_written(native, backward), native, randn(x=shape), words)


def largest(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 2)


def overlapping(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, 1)


def enlarged(g: Tensor) -> Tensor:
    return g.repeat_interleave(2, 2).repeat_interleave(2, 3)


def is_largest(x: Tensor) -> Tensor:
    return x == enlarged(largest(x))


def spread(g: Tensor, x: Tensor) -> Tensor:
    """The right answer: to the first of the largest."""
    places = F.max_pool2d(x, 2, return_indices=True)[1]
    return torch.zeros_like(x).flatten(2).scatter(2, places.flatten(2), g.flatten(2)).view_as(x)


def shared(g: Tensor, x: Tensor) -> Tensor:
    mask = is_largest(x).to(g)
    return enlarged(g / (4 * F.avg_pool2d(mask, 2))) * mask


def scattered(g: Tensor, x: Tensor) -> Tensor:
    """``scatter`` where only ``scatter_add`` adds up what several windows send to one place."""
    places = F.max_pool2d(x, 3, 1, return_indices=True)[1]
    return torch.zeros_like(x).flatten(2).scatter(2, places.flatten(2), g.flatten(2)).view_as(x)


def padded_mean(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2, padding=1, count_include_pad=False)


def in_the_middle(x: Tensor) -> Tensor:
    return x.mean((2, 3))


POOLING = [
    pooling("each of several equal maxima has it all", "only at ties", largest,
            lambda g, x: enlarged(g) * is_largest(x)),
    pooling("equal maxima share", "only at ties", largest, shared),
    pooling("the last of equal maxima has it", "only at ties", largest,
            lambda g, x: spread(g.flip(2, 3), x.flip(2, 3)).flip(2, 3)),
    pooling("one of several windows counts", "missing term", overlapping, scattered, (2, 2, 7, 6)),
    pooling("row and column exchanged when the place is read", "transposed", largest,
            lambda g, x: spread(g, x).mT, (2, 3, 6, 6)),
    pooling("places counted from 1", "shifted", largest, lambda g, x: F.pad(spread(g, x), (0, 0, 1, -1)),
            words=("row", "rows", "dimension 2")),
    pooling("odd image: the last row and column forgotten", "wrong shape", largest, lambda g, x: enlarged(g),
            (2, 3, 7, 5)),
    pooling("every place of the window has it", "unknown", largest, lambda g, x: enlarged(g)),
    pooling("mean not divided", "constant factor", lambda x: F.avg_pool2d(x, 2), lambda g, x: enlarged(g), words="4"),
    pooling("mean of a whole channel not divided", "constant factor", in_the_middle,
            lambda g, x: g[:, :, None, None].expand_as(x), (2, 3, 5, 6), words="30"),
    pooling(
        "mean at the border divided by the whole window", "only at borders", padded_mean,
        lambda g, x: enlarged(g)[:, :, 1:-1, 1:-1] / 4,
    ),
    pooling("enlarging: one of four copies counts", "missing term", enlarged, lambda g, x: g[:, :, ::2, ::2],
            (2, 3, 3, 4)),
    wrong(
        "larger of two: both have it where they are equal", "only at ties", "a",
        hand_written(torch.maximum, lambda g, a, b: (g * (a >= b), g * (b >= a))), torch.maximum,
        randn(a=(6, 7), b=(6, 7)), also=("b",),
    ),
]  # fmt: skip
