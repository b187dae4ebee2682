"""The precision of a convolution's products: what the dtype and PyTorch's flags say."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def precision_of(x: Tensor) -> str:
    """ "half", "tf32" or "3xtf32": see ``kernels/conv2d_products.py``."""
    if x.dtype != torch.float32:
        return "half"
    return "tf32" if allows_tf32() else "3xtf32"


def allows_tf32() -> bool:
    """Return True if a native convolution of float32 tensors may use TF32 on CUDA.

    ``torch.backends.cudnn.conv.fp32_precision`` says so, which ``torch.backends.cudnn.allow_tf32``,
    ``torch.backends.cudnn.fp32_precision`` and ``torch.backends.fp32_precision`` change too. Without cuDNN the native
    convolution is a matrix product, which has a flag of its own."""
    backends: Any = torch.backends  # the newer flags are not in mypy's view of the modules
    flags = backends.cudnn.conv if backends.cudnn.enabled else backends.cuda.matmul
    return bool(flags.fp32_precision == "tf32")
