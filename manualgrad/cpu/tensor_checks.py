"""Checks that a kernel may access a tensor: that its memory is what its type, shape and strides say."""

from __future__ import annotations

import torch
from torch import Tensor

from manualgrad._torch_compat import (
    dispatch_mode_count,
    is_functorch_active,
    is_functorch_wrapped,
    is_legacy_batched,
    is_zero_tensor,
    jit_tracing_state,
)


def is_plain_tensor(x: Tensor) -> bool:
    """Return True if ``x`` has memory and values of its own.

    Not plain: what torch.compile or torch.jit.trace traces, fake and meta tensors, tensors wrapped by a transform of
    ``torch.func``, and the batched gradients of ``is_grads_batched``."""
    return not torch.compiler.is_compiling() and not jit_tracing_state() and _has_values(x)


def _has_values(x: Tensor) -> bool:
    return (
        type(x) in (Tensor, torch.nn.Parameter)
        and not x.is_meta
        and not is_functorch_wrapped(x)
        and not is_legacy_batched(x)
    )


def in_plain_eager_mode() -> bool:
    """Return True if no dispatch mode, tracer, compiler or transform of ``torch.func`` is active.

    These work on operators and would miss a kernel, which is none; and ``torch.func`` wraps every new tensor."""
    return not (
        torch.compiler.is_compiling() or dispatch_mode_count() or jit_tracing_state() or is_functorch_active()
    )


def supports_tensors(*tensors: Tensor | None, dtype: torch.dtype = torch.float32) -> bool:
    """Return True in plain eager mode if all tensors are plain, strided, of ``dtype`` and on the CPU."""
    return in_plain_eager_mode() and all(t is None or _is_plain_cpu_tensor(t, dtype) for t in tensors)


def is_contiguous_as(x: Tensor, shape: torch.Size, dtype: torch.dtype = torch.float32) -> bool:
    """Return True if a kernel can read ``x`` as a contiguous array of this shape and dtype.

    It checks all of :func:`supports_tensors` except the mode, and that the storage covers the array."""
    return (
        x.shape == shape
        and _is_plain_cpu_tensor(x, dtype)
        and x.is_contiguous()
        and not x.is_neg()
        and x.untyped_storage().nbytes() >= (x.storage_offset() + x.numel()) * dtype.itemsize
    )


def _is_plain_cpu_tensor(x: Tensor, dtype: torch.dtype) -> bool:
    return x.dtype is dtype and x.is_cpu and x.layout is torch.strided and _has_values(x) and not is_zero_tensor(x)


def storage_covers(x: Tensor) -> bool:
    """Return True if the storage of ``x`` covers all its elements; ``resize_`` can make a storage smaller."""
    if x.numel() == 0:
        return True
    if x.is_contiguous():
        return x.untyped_storage().nbytes() >= (x.storage_offset() + x.numel()) * x.element_size()
    last = x.storage_offset() + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return x.untyped_storage().nbytes() >= (last + 1) * x.element_size()
