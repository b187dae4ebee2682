"""Selection by a mask: δ_ij times a gradient, for derivatives that are 1 or 0.

On the CPU PyTorch does not vectorise ``where``, nor comparisons that write bool. There both are made of operators
that it does vectorise; the results are the same, bit for bit.
"""

from __future__ import annotations

import operator

import torch
from torch import Tensor

from manualgrad.dispatch import uses_bit_masks

_INT_DTYPES = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}
_COMPARISONS = {"==": "eq", ">=": "ge", "<=": "le"}


def select(condition: Tensor, value: Tensor) -> Tensor:
    """``value`` where ``condition`` is True, 0 elsewhere.

    This is a selection, as in PyTorch's own layers. A product with 0 and 1 would turn an infinite value into NaN.
    """
    dtype = _INT_DTYPES.get(value.dtype)
    if dtype is None or condition.shape != value.shape or not uses_bit_masks(condition, value) or value.is_neg():
        return torch.where(condition, value, 0)
    mask = condition.to(dtype).neg_()  # −1 has all bits set
    return mask.bitwise_and_(value.view(dtype)).view(value.dtype)


def compare(x: Tensor, comparison: str, other: Tensor | float) -> Tensor:
    """Mask of x == other, x >= other or x <= other; ``comparison`` is "==", ">=" or "<="."""
    name = _COMPARISONS[comparison]
    mask: Tensor
    if uses_bit_masks(x):
        mask = getattr(x.clone(), f"{name}_")(other)  # 1 and 0 in the dtype of x
        return mask.bool()
    mask = getattr(operator, name)(x, other)
    return mask
