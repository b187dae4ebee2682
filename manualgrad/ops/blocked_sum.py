"""Matrix products whose sums are long, in parts: a sum of sums rounds less than one long sum.

Where n terms are added one after another, each addition rounds all that has been summed until then. Of independent
terms, the mean square of the error, over that of the sum, is n/2 times that of a single rounding. In n/m parts of m
terms it is m/2 times within the parts, and n/2m times where they are added up: least for m = √n.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from manualgrad.cpu.tensor_checks import is_plain_tensor
from manualgrad.ops.precision import autocast_lower

BLOCK_K = 64  # m, about: parts of 32 round less where n is below 2,048, but a product takes up to an eighth longer


def blocked_bmm_sum(a: Iterable[Tensor], b: Iterable[Tensor], c: Tensor | None = None) -> Tensor:
    """a₀ b₀ + a₁ b₁ + ... + c of pairs of matrices: each a (G, N, M), b (G, M, K) and c (G, 1, K), or None, to
    (G, N, K).

    In parts for float32 on the CPU. Elsewhere each is one product: 16-bit numbers would be rounded to 16 bits after
    each part, float64 has digits to spare, and on a GPU each part would be one more kernel to launch.
    """
    z = None
    for factors in zip(a, b, strict=True):
        for part in _parts(*autocast_lower(*factors)):
            if z is None:
                z = torch.bmm(*part) if c is None else torch.baddbmm(*autocast_lower(c), *part)
            else:
                z = add_product(z, *part)
    return z


def blocked_bmm(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """a b + c, as :func:`blocked_bmm_sum` has it."""
    return blocked_bmm_sum([a], [b], c)


def add_product(z: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """z + a b, in place: z (G, N, K), which may be a view, a (G, N, M), b (G, M, K)."""
    a, b = autocast_lower(a, b)  # as a product does by itself, but not in place
    return (
        z.baddbmm_(a, b) if is_plain_tensor(z) else z.add_(torch.bmm(a, b))
    )  # vmap has no rule for a product in place


def _parts(a: Tensor, b: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """a and b, cut along what is summed over."""
    n = a.shape[2]
    parted = a.dtype == torch.float32 and a.device.type == "cpu"
    size = math.ceil(n / max(1, round(n / BLOCK_K))) if parted else n
    return zip(a.split(max(size, 1), 2), b.split(max(size, 1), 1), strict=True)
