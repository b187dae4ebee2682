"""Matrix products whose sums are long, in parts: a sum of sums rounds less than one long sum.

Where n terms are added one after another, each addition rounds all that has been summed until then. Of independent
terms, the mean square of the error, over that of the sum, is n/2 times that of a single rounding. In n/m parts of m
terms it is m/2 times within the parts, and n/2m times where they are added up: least for m = √n.
"""

from __future__ import annotations

import torch
from torch import Tensor

from manualgrad.functions.precision import autocast_lower
from manualgrad.kernels.plain import is_plain

PART = 64  # m: parts of 32 round less where n is below 2,048, but a product takes up to an eighth longer


def products_in_parts(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """a b + c of each pair of matrices: a (G, N, M), b (G, M, K) and c (G, 1, K), or None, to (G, N, K).

    In parts for float32 on the CPU. Elsewhere it is one product: 16-bit numbers would be rounded to 16 bits after
    each part, float64 has digits to spare, and on a GPU each part would be one more kernel to launch.
    """
    a, b, c = autocast_lower(a, b, c)  # as a product does by itself, but not in place
    parted = a.dtype == torch.float32 and a.device.type == "cpu"
    size = PART if parted else max(a.shape[2], 1)
    first, *others = zip(a.split(size, 2), b.split(size, 1), strict=True)
    z = torch.bmm(*first) if c is None else torch.baddbmm(c, *first)
    for part in others:
        z = z.baddbmm_(*part) if is_plain(z) else z + torch.bmm(*part)  # vmap has no rule for a product in place
    return z
