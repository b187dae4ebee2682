"""Dtypes under ``torch.autocast``, and the dtype of sums.

The casts are made by hand, since ``torch.amp.custom_fwd`` does not support ``setup_context``.
"""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor


@overload
def autocast_lower(a: Tensor, /) -> tuple[Tensor]: ...
@overload
def autocast_lower(a: Tensor, b: Tensor, /) -> tuple[Tensor, Tensor]: ...
@overload
def autocast_lower(input: Tensor, weight: Tensor, bias: Tensor | None, /) -> tuple[Tensor, Tensor, Tensor | None]: ...
def autocast_lower(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Cast the operands of a product (convolution, dense) to autocast's dtype if autocast is on, as PyTorch does."""
    device = tensors[0].device.type  # type: ignore[union-attr]  # the overloads above: the first is a tensor
    if not _is_autocast_on(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(tensor if tensor is None or not _is_cast(tensor) else tensor.to(dtype) for tensor in tensors)


def autocast_float32(tensor: Tensor) -> Tensor:
    """Cast the operand of an exponential (softmax, cross-entropy) to float32 if autocast is on, as PyTorch does."""
    if _is_autocast_on(tensor.device.type) and _is_cast(tensor):
        return tensor.float()
    return tensor


def autocast_is_on(tensor: Tensor) -> bool:
    """Return True if ``torch.autocast`` is on for the device of ``tensor``."""
    return _is_autocast_on(tensor.device.type)


def _is_autocast_on(device: str) -> bool:
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def _is_cast(tensor: Tensor) -> bool:
    """Return True for the dtypes that autocast casts: floating point, but not float64."""
    return tensor.is_floating_point() and tensor.dtype != torch.float64


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype in which many numbers of ``dtype`` are added: float32 for 16-bit numbers, otherwise ``dtype``."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
