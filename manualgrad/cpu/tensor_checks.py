"""Which tensors a kernel may touch: those whose memory is what it seems."""

from __future__ import annotations

import torch
from torch import Tensor


def is_plain_tensor(x: Tensor) -> bool:
    """Whether ``x`` has memory and values of its own: not traced by the compiler, not a fake or meta tensor, not
    batched by vmap (functorch's or the older one of ``is_grads_batched``), not wrapped by another transform."""
    return not torch.compiler.is_compiling() and _has_values(x)


def _has_values(x: Tensor) -> bool:
    functorch = torch._C._functorch
    return (
        type(x) in (Tensor, torch.nn.Parameter)
        and not x.is_meta
        and not functorch.is_functorch_wrapped_tensor(x)
        and not functorch.is_legacy_batchedtensor(x)
    )


def in_plain_eager_mode() -> bool:
    """Whether nobody watches, traces or transforms operators: kernels are none, and what is made inside of
    ``torch.func`` is wrapped."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._get_tracing_state()
        or torch._C._are_functorch_transforms_active()
    )


def supports_tensors(*tensors: Tensor | None, dtype: torch.dtype = torch.float32) -> bool:
    """Whether kernels can be given these: plain ones of ``dtype`` on the CPU with all their memory, while nobody
    watches or traces operators."""
    return in_plain_eager_mode() and all(t is None or _is_on_the_cpu(t, dtype) for t in tensors)


def is_contiguous_as(x: Tensor, shape: torch.Size, dtype: torch.dtype = torch.float32) -> bool:
    """Whether a kernel can be given ``x`` as it lies: one that :func:`supports_tensors`, of that shape,
    without a gap, and all there."""
    return (
        x.shape == shape
        and _is_on_the_cpu(x, dtype)
        and x.is_contiguous()
        and not x.is_neg()
        and x.untyped_storage().nbytes() >= (x.storage_offset() + x.numel()) * dtype.itemsize
    )


def _is_on_the_cpu(x: Tensor, dtype: torch.dtype) -> bool:
    return x.dtype is dtype and x.is_cpu and x.layout is torch.strided and _has_values(x) and not x._is_zerotensor()


def storage_covers(x: Tensor) -> bool:
    """Whether the memory behind ``x`` holds all of it: a storage may have been made smaller."""
    if x.numel() == 0:
        return True
    if x.is_contiguous():
        return x.untyped_storage().nbytes() >= (x.storage_offset() + x.numel()) * x.element_size()
    last = x.storage_offset() + sum((size - 1) * step for size, step in zip(x.shape, x.stride(), strict=True))
    return x.untyped_storage().nbytes() >= (last + 1) * x.element_size()
