"""Checks that a kernel for CUDA may access a tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from manualgrad._torch_compat import is_zero_tensor
from manualgrad.cuda.launch import interprets, unsupported_device
from manualgrad.tensor_checks import has_values

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
MAX_OFFSET = 2**31 - 2**16  # offsets that fit into 32 bits, with what a program may add to round up


def unsupported_tensors(*tensors: Tensor | None, dtypes: Sequence[torch.dtype] = FLOATS) -> str:
    """Return the reason why kernels do not support one of the tensors, "" if they support all.

    Kernels read plain strided tensors on one GPU, all of the same dtype, one of ``dtypes``. While torch.compile
    traces, it looks at dtype and device only: traced tensors have no memory."""
    present = [x for x in tensors if x is not None]
    first = present[0]
    if first.dtype not in dtypes:
        return f"a tensor is {str(first.dtype).removeprefix('torch.')}"
    device = first.device
    if device.type != ("cpu" if interprets() else "cuda"):
        return "a tensor is not on a GPU"
    for x in present:
        if x.dtype is not first.dtype or x.device != device:
            return "the tensors differ in dtype or device"
        if torch.compiler.is_compiling():
            continue
        if x.layout is not torch.strided or x.is_neg() or not has_values(x) or is_zero_tensor(x):
            return "a tensor has no plain memory of its own: a layout, a subclass, or a wrapper"
    return unsupported_device(device.index) if device.type == "cuda" else ""


def needs_64_bits(*tensors: Tensor) -> bool:
    """Return True if an element of a tensor is further from its first one than 32 bits can count."""
    return any(sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) >= MAX_OFFSET for x in tensors)
