"""Checks that a kernel may access a tensor: that its memory is what its type, shape and strides say."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from manualgrad._torch_compat import ORDINARY_CPU_KEYS, dispatch_keys, is_zero_tensor
from manualgrad.tensor_checks import PLAIN_TYPES, has_values, in_plain_eager_mode


def supports_tensors(*tensors: Tensor | None, dtype: torch.dtype = torch.float32) -> bool:
    """Return True in plain eager mode if all tensors are plain, strided, of ``dtype`` and on the CPU."""
    return in_plain_eager_mode() and not unsupported_tensors(*tensors, dtype=dtype)


def unsupported_tensors(*tensors: Tensor | None, dtype: torch.dtype = torch.float32) -> str:
    """Return the reason why kernels do not support one of the tensors, "" if they support all.

    While torch.compile traces, it looks at dtype and device only: traced tensors have no memory."""
    check = _unsupported_traced if torch.compiler.is_compiling() else unsupported_tensor
    for x in tensors:
        if x is not None and (reason := check(x, dtype)):
            return reason
    return ""


def unsupported_tensor(
    x: Tensor, dtype: torch.dtype = torch.float32, *, contiguous: bool = False, covered: bool = False
) -> str:
    """Return the reason why kernels do not support ``x``, "" if they do.

    Kernels read plain strided tensors of ``dtype`` on the CPU; those that need ``contiguous`` ones read all elements
    from first to last, so the storage has to cover them, as with ``covered`` for any strides."""
    if x.dtype is not dtype:
        return _WRONG_DTYPE[dtype]
    is_ordinary = type(x) in PLAIN_TYPES and dispatch_keys(x).raw_repr() == ORDINARY_CPU_KEYS
    if not is_ordinary:
        if not x.is_cpu or x.layout is not torch.strided:
            return "a tensor is not strided, or not on the CPU"
        if not has_values(x) or is_zero_tensor(x):
            return "a tensor has no memory of its own: a subclass, or a wrapper"
    if contiguous:
        if not (x.is_contiguous() and (is_ordinary or not x.is_neg())):
            return "a tensor is not contiguous"
        if x.untyped_storage().nbytes() < (x.storage_offset() + x.numel()) * dtype.itemsize:
            return TOO_SMALL
    return TOO_SMALL if covered and not storage_covers(x) else ""


def _unsupported_traced(x: Tensor, dtype: torch.dtype) -> str:
    return "" if x.dtype is dtype and x.device.type == "cpu" else f"{_WRONG_DTYPE[dtype]}, or not on the CPU"


TOO_SMALL = "the storage of a tensor is too small"
_WRONG_DTYPE = {
    torch.float32: "a tensor is not float32",
    torch.int64: "labels are not int64",
    torch.uint8: "a tensor is not uint8",
}


def is_contiguous_as(x: Tensor, shape: torch.Size, dtype: torch.dtype = torch.float32) -> bool:
    """Return True if a kernel can read ``x`` as a contiguous array of this shape and dtype, in any mode."""
    return x.shape == shape and not unsupported_tensor(x, dtype, contiguous=True)


def is_in_contiguous_format(x: Tensor) -> bool:
    """Return True if x is contiguous and not channels_last too, as images of one channel or pixel are."""
    return x.is_contiguous() and not x.is_contiguous(memory_format=torch.channels_last) and not x.is_neg()


def storage_covers(x: Tensor) -> bool:
    """Return True if the storage of ``x`` covers all its elements; ``resize_`` can make a storage smaller."""
    span = x.numel() if x.is_contiguous() else span_in_memory(x.shape, x.stride())  # the former takes less time
    return span == 0 or x.untyped_storage().nbytes() >= (x.storage_offset() + span) * x.itemsize


@lru_cache(maxsize=1024)
def span_in_memory(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Number of elements from the first to the last in memory, 0 if there is none."""
    return 0 if 0 in shape else 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
