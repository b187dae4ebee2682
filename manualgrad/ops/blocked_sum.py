"""Batched matrix products; for float32 on the CPU the sum is split into blocks, which has a smaller rounding error.

The sum of a matrix product has K terms. Added one after another, they round K times: if they are independent, the
mean squared relative error is K/2 times that of a single rounding. In blocks of m terms it is m/2 times that inside
the blocks plus K/(2m) times that where the blocks are added. The total is least for m = √K.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from manualgrad.dispatch import sum_block_length
from manualgrad.ops.precision import cast_to_autocast_dtype
from manualgrad.ops.tracers import constant_shape
from manualgrad.tensor_checks import is_plain_tensor


def blocked_bmm_sum(a: Iterable[Tensor], b: Iterable[Tensor], c: Tensor | None = None) -> Tensor:
    """Σ_i a_i b_i + c: a_i (G, M, K), b_i (G, K, N) and c (G, 1, N); the result is (G, M, N).

    ``dispatch.sum_block_length`` decides which products are split into blocks; every other product is one block.
    """
    z = None
    for a_i, b_i in zip(a, b, strict=True):
        for a_block, b_block in _blocks(*cast_to_autocast_dtype(a_i, b_i)):
            if z is not None:
                z = add_product_(z, a_block, b_block)
            elif c is None:
                z = torch.bmm(a_block, b_block)
            else:
                z = torch.baddbmm(*cast_to_autocast_dtype(c), a_block, b_block)
    if z is None:
        raise ValueError("blocked_bmm_sum: expected at least one pair of matrices, got none")
    return z


def blocked_bmm(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """a b + c, computed as by :func:`blocked_bmm_sum`."""
    return blocked_bmm_sum([a], [b], c)


def add_product_(z: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Add a b to z in place and return z: z (G, M, N), which may be a view, a (G, M, K), b (G, K, N)."""
    a, b = cast_to_autocast_dtype(a, b)  # autocast casts the operands of bmm, but not those of the in-place baddbmm_
    if is_plain_tensor(z):
        return z.baddbmm_(a, b)
    return z.add_(torch.bmm(a, b))  # traced, or batched by vmap, which has no rule for baddbmm_


def _blocks(a: Tensor, b: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of blocks of ``a`` and ``b``, split along the dimension that is summed over."""
    depth = constant_shape(a)[2]  # K
    block_length = sum_block_length(a)  # m
    length = depth if block_length is None else math.ceil(depth / max(1, round(depth / block_length)))
    if length == depth:
        return iter([(a, b)])
    return zip(torch.split(a, length, 2), torch.split(b, length, 1), strict=True)
