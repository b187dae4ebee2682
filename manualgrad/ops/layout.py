"""Conversion between PyTorch's order of dimensions and the formula sheet's, by views.

A Function's result lies in memory in the formula sheet's order, channels last, or contiguous if its geometry says so,
whatever the order of its input: forward mode requires that a tangent has the strides of its primal.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from manualgrad._torch_compat import dispatch_mode_count, jit_tracing_state
from manualgrad.ops.tracers import constant_shape
from manualgrad.tensor_checks import is_plain_tensor


def from_nchw(x: Tensor) -> Tensor:
    """View of (N, C, H, W) as the formula sheet's (N, H, W, C)."""
    return x.permute(0, 2, 3, 1)


def to_nchw(x: Tensor) -> Tensor:
    """View of the formula sheet's (N, H, W, C) as (N, C, H, W)."""
    return x.permute(0, 3, 1, 2)


def from_oihw(w: Tensor) -> Tensor:
    """View of (C_out, C_in, kH, kW) as the formula sheet's (kH, kW, C_in, C_out)."""
    return w.permute(2, 3, 1, 0)


def to_oihw(w: Tensor) -> Tensor:
    """View of the formula sheet's (kH, kW, C_in, C_out) as (C_out, C_in, kH, kW)."""
    return w.permute(3, 2, 0, 1)


def as_contiguous(x: Tensor) -> Tensor:
    """Return ``x`` with strides in the order of its dimensions; a copy if its strides differ.

    PyTorch calls ``x`` contiguous even if dimensions of size 1 are out of order, but the next layer looks at strides.
    """
    shape = constant_shape(x)
    if x.is_contiguous() and (1 not in shape or x.stride() == _contiguous_strides(shape)):
        return x
    return x.clone(memory_format=torch.contiguous_format)


def _contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    strides = [1]
    for size in reversed(shape[1:]):
        strides.insert(0, strides[0] * size)
    return tuple(strides)


def in_memory_format(x: Tensor, channels_last: bool) -> Tensor:
    """Return ``x`` (N, C, H, W) in channels_last or contiguous memory, strides of sizes 1 too; a copy if needed."""
    return to_nchw(as_contiguous(from_nchw(x))) if channels_last else as_contiguous(x)


def as_non_view(x: Tensor) -> Tensor:
    """Return ``x`` as a tensor that is no view, without a copy; no other tensor may use its memory.

    Autograd refuses an in-place change of a view that a Function returned. A ReLU with ``inplace=True`` after a
    convolution would raise. Compilers, dispatch modes and ``torch.func`` do not support ``set_`` and get a copy;
    what ``torch.jit.trace`` records has no Function.
    """
    if jit_tracing_state():
        return x
    if not is_plain_tensor(x) or dispatch_mode_count():
        return x.clone()
    return x.new_empty(0).set_(x.untyped_storage(), x.storage_offset(), x.shape, x.stride())
