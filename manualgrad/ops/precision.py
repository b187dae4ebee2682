"""Dtypes under ``torch.autocast``, and the dtype of sums.

The casts are made by hand, since ``torch.amp.custom_fwd`` does not support ``setup_context``.
"""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor

from manualgrad._torch_compat import is_autocast_available


@overload
def cast_to_autocast_dtype(a: Tensor, /) -> tuple[Tensor]: ...
@overload
def cast_to_autocast_dtype(a: Tensor, b: Tensor, /) -> tuple[Tensor, Tensor]: ...
@overload
def cast_to_autocast_dtype(
    input: Tensor, weight: Tensor, bias: Tensor | None, /
) -> tuple[Tensor, Tensor, Tensor | None]: ...
def cast_to_autocast_dtype(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Cast the operands of a product (convolution, dense) to autocast's dtype if autocast is on, as PyTorch does."""
    device_type = tensors[0].device.type  # type: ignore[union-attr]  # the overloads above: the first is a tensor
    if not _is_enabled_for(device_type):
        return tensors
    dtype = torch.get_autocast_dtype(device_type)
    return tuple(tensor if tensor is None or not _is_eligible(tensor) else tensor.to(dtype) for tensor in tensors)


def cast_to_float32_under_autocast(tensor: Tensor) -> Tensor:
    """Cast the operand of an exponential (softmax, cross-entropy) to float32 if autocast is on, as PyTorch does."""
    if _is_enabled_for(tensor.device.type) and _is_eligible(tensor):
        return tensor.float()
    return tensor


def is_autocast_enabled(tensor: Tensor) -> bool:
    """Return True if ``torch.autocast`` is on for the device of ``tensor``."""
    return _is_enabled_for(tensor.device.type)


def _is_enabled_for(device_type: str) -> bool:
    return is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def _is_eligible(tensor: Tensor) -> bool:
    """Return True for the dtypes that autocast casts: floating point, but not float64."""
    return tensor.is_floating_point() and tensor.dtype != torch.float64


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype in which many numbers of ``dtype`` are added: float32 for 16-bit numbers, otherwise ``dtype``."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
