"""Which tensors a kernel may touch: those whose memory is what it seems."""

from __future__ import annotations

import torch
from torch import Tensor


def is_plain(x: Tensor) -> bool:
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


def is_served(*tensors: Tensor | None, dtype: torch.dtype = torch.float32) -> bool:
    """Whether kernels can be given these: plain ones of ``dtype`` on the CPU with all their memory, while nobody
    watches or traces operators."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() or torch.jit.is_tracing():
        return False
    for t in tensors:
        if t is not None and not (
            t.dtype is dtype and t.layout is torch.strided and t.is_cpu and _has_values(t) and not t._is_zerotensor()
        ):
            return False
    return True


def is_all_there(x: Tensor) -> bool:
    """Whether the memory behind ``x`` holds all of it: a storage may have been made smaller."""
    if x.numel() == 0:
        return True
    if x.is_contiguous():
        return x.untyped_storage().nbytes() >= (x.storage_offset() + x.numel()) * x.element_size()
    last = x.storage_offset() + sum((size - 1) * step for size, step in zip(x.shape, x.stride(), strict=True))
    return x.untyped_storage().nbytes() >= (last + 1) * x.element_size()
