"""Matrix products with long sums, computed in blocks: a sum of partial sums rounds less than one long sum.

If n terms are added one after another, each addition rounds the partial sum. For independent terms, the mean square
of the error, relative to that of the sum, is n/2 times that of a single rounding. With n/m blocks of m terms it is
m/2 times that within the blocks, and n/2m times where the blocks are added. The total is least for m = √n.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from manualgrad.cpu.tensor_checks import is_plain_tensor
from manualgrad.ops.precision import autocast_lower

# Approximate length m of a block. Below n = 2,048 blocks of 32 round less, but a product takes up to 12 % longer.
BLOCK_K = 64


def blocked_bmm_sum(a: Iterable[Tensor], b: Iterable[Tensor], c: Tensor | None = None) -> Tensor:
    """Σ_n a_n b_n + c for pairs of batches of matrices: each a (G, M, K), b (G, K, N), c (G, 1, N) to (G, M, N).

    float32 on the CPU is computed in blocks. Otherwise each product is one: 16-bit numbers would be rounded to 16
    bits after each block, float64 has enough digits, and on a GPU each block would be one more kernel launch.
    """
    z = None
    for a_n, b_n in zip(a, b, strict=True):
        for a_block, b_block in _blocks(*autocast_lower(a_n, b_n)):
            if z is not None:
                z = add_product(z, a_block, b_block)
            elif c is None:
                z = torch.bmm(a_block, b_block)
            else:
                z = torch.baddbmm(*autocast_lower(c), a_block, b_block)
    if z is None:
        raise ValueError("blocked_bmm_sum: expected at least one pair of matrices, got none")
    return z


def blocked_bmm(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """a b + c, computed as by :func:`blocked_bmm_sum`."""
    return blocked_bmm_sum([a], [b], c)


def add_product(z: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """z + a b, computed in place: z (G, M, N), which may be a view, a (G, M, K), b (G, K, N)."""
    a, b = autocast_lower(a, b)  # autocast casts the operands of bmm, but not those of the in-place baddbmm_
    if is_plain_tensor(z):
        return z.baddbmm_(a, b)
    return z.add_(torch.bmm(a, b))  # vmap has no rule for baddbmm_


def _blocks(a: Tensor, b: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of blocks of ``a`` and ``b``, split along the dimension that is summed over."""
    n = a.shape[2]
    is_blocked = a.dtype == torch.float32 and a.device.type == "cpu"
    length = math.ceil(n / max(1, round(n / BLOCK_K))) if is_blocked else n
    return zip(torch.split(a, max(length, 1), 2), torch.split(b, max(length, 1), 1), strict=True)
