"""Shapes of terms, without their values: most products have no shape that fits, and are not computed."""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations

import torch

MAX_KNOWN = 10_000  # pairs of shapes that are kept


@lru_cache(MAX_KNOWN)
def ways_to_shape(own: torch.Size, shape: torch.Size) -> list[tuple[tuple[int, ...], bool]]:
    """Dimensions whose sum has the shape, and whether they are kept; no dimensions for a value that fits as it is."""
    if own == shape:
        return [((), False)]
    ways: list[tuple[tuple[int, ...], bool]] = []
    if len(own) <= len(shape) and all(a in (1, b) for a, b in zip(own[::-1], shape[::-1], strict=False)):
        ways.append(((), False))
    if own.numel() % max(shape.numel(), 1):
        return ways  # no sum has so many elements
    for count in (1, 2):
        for dims in combinations(range(len(own)), count):
            for kept in (False, True):
                sizes = [1 if d in dims else s for d, s in enumerate(own) if kept or d not in dims]
                if torch.Size(sizes) == shape:
                    ways.append((dims, kept))
    return ways


@lru_cache(MAX_KNOWN)
def common_shape(a: torch.Size, b: torch.Size) -> torch.Size | None:
    """The shape of what is computed of each two elements; None for shapes that do not go together."""
    try:
        return torch.broadcast_shapes(a, b)
    except RuntimeError:
        return None
