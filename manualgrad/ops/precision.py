"""What ``torch.autocast`` asks for, by hand: ``custom_fwd`` does not go together with ``setup_context``."""

from __future__ import annotations

import torch
from torch import Tensor


def autocast_lower(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """For products (convolution, dense): to autocast's dtype where it is on, as native layers do."""
    device = tensors[0].device.type
    if not _autocast(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(tensor.to(dtype) if _eligible(tensor) else tensor for tensor in tensors)


def autocast_float32(tensor: Tensor) -> Tensor:
    """For exponentials (softmax, cross-entropy): to float32 where autocast is on, as native layers do."""
    if _autocast(tensor.device.type) and _eligible(tensor):
        return tensor.float()
    return tensor


def autocast_is_on(tensor: Tensor) -> bool:
    """Whether ``torch.autocast`` asks for something where ``tensor`` lies."""
    return _autocast(tensor.device.type)


def _autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def _eligible(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.is_floating_point() and tensor.dtype != torch.float64


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which many numbers of ``dtype`` are added: float32 for the 16-bit ones."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
