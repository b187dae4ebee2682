"""Checks that a kernel may access a tensor: that its memory is what its type, shape and strides say."""

from __future__ import annotations

import torch
from torch import Tensor

from manualgrad._torch_compat import is_zero_tensor
from manualgrad.tensor_checks import has_values, in_plain_eager_mode


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


def unsupported_tensor(x: Tensor, dtype: torch.dtype = torch.float32, *, contiguous: bool = False) -> str:
    """Return the reason why kernels do not support ``x``, "" if they do.

    Kernels read plain strided tensors of ``dtype`` on the CPU; those that need ``contiguous`` ones read all elements
    from first to last, so the storage has to cover them."""
    if x.dtype is not dtype:
        return _WRONG_DTYPE[dtype]
    if not x.is_cpu or x.layout is not torch.strided:
        return "a tensor is not strided, or not on the CPU"
    if not has_values(x) or is_zero_tensor(x):
        return "a tensor has no memory of its own: a subclass, or a wrapper"
    if contiguous:
        if not x.is_contiguous() or x.is_neg():
            return "a tensor is not contiguous"
        if x.untyped_storage().nbytes() < (x.storage_offset() + x.numel()) * dtype.itemsize:
            return "the storage of a tensor is too small"
    return ""


def _unsupported_traced(x: Tensor, dtype: torch.dtype) -> str:
    return "" if x.dtype is dtype and x.device.type == "cpu" else f"{_WRONG_DTYPE[dtype]}, or not on the CPU"


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
    numel = x.numel()
    if numel == 0:
        return True
    if x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)):
        return x.untyped_storage().nbytes() >= (x.storage_offset() + numel) * x.itemsize
    last = x.storage_offset() + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return x.untyped_storage().nbytes() >= (last + 1) * x.itemsize
