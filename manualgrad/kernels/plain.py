"""Which tensors a kernel may touch: those whose memory is what it seems."""

from __future__ import annotations

import torch
from torch import Tensor


def is_plain(x: Tensor) -> bool:
    """Whether ``x`` has memory and values of its own: not traced by the compiler, not a fake or meta tensor, not
    batched by vmap (functorch's or the older one of ``is_grads_batched``), not wrapped by another transform."""
    functorch = torch._C._functorch
    return (
        not torch.compiler.is_compiling()
        and type(x) in (Tensor, torch.nn.Parameter)
        and not x.is_meta
        and not functorch.is_functorch_wrapped_tensor(x)
        and not functorch.is_legacy_batchedtensor(x)
    )
