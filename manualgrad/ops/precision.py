"""Dtypes under ``torch.autocast``, and the dtype of sums.

The casts are made by hand, since ``torch.amp.custom_fwd`` does not support ``setup_context``.
"""

from __future__ import annotations

from typing import cast, overload

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
    first = cast(Tensor, tensors[0])  # the overloads above: the first is a tensor
    if not is_autocast_enabled(first):
        return tensors
    dtype = torch.get_autocast_dtype(first.device.type)
    return tuple(tensor if tensor is None or not _is_eligible(tensor) else tensor.to(dtype) for tensor in tensors)


def cast_to_float32_under_autocast(tensor: Tensor) -> Tensor:
    """Cast the operand of an exponential (softmax, cross-entropy) to float32 if autocast is on, as PyTorch does."""
    if is_autocast_enabled(tensor) and _is_eligible(tensor):
        return tensor.float()
    return tensor


def is_autocast_enabled(tensor: Tensor) -> bool:
    """Return True if ``torch.autocast`` is on for the device of ``tensor``."""
    if tensor.is_cpu:  # which every build supports
        return torch.is_autocast_enabled("cpu")
    device_type = tensor.device.type
    return is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def _is_eligible(tensor: Tensor) -> bool:
    """Return True for the dtypes that autocast casts: floating point, but not float64."""
    return tensor.is_floating_point() and tensor.dtype != torch.float64


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype in which many numbers of ``dtype`` are added: float32 for 16-bit numbers, otherwise ``dtype``."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
