"""PyTorch's order of dimensions, seen as the document's, and back: views, not copies.

What a Function returns lies in memory in the document's order, channels last, whatever the order of its input:
forward mode wants a tangent to lie as its primal does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from manualgrad.cpu.tensor_checks import is_plain_tensor


def from_nchw(x: Tensor) -> Tensor:
    """(B, C, H, W) seen as the document's (B, H, W, C)."""
    return x.permute(0, 2, 3, 1)


def to_nchw(x: Tensor) -> Tensor:
    """The document's (B, H, W, C) seen as (B, C, H, W)."""
    return x.permute(0, 3, 1, 2)


def from_oihw(w: Tensor) -> Tensor:
    """(K, R, P+1, Q+1) seen as the document's (P+1, Q+1, R, K)."""
    return w.permute(2, 3, 1, 0)


def to_oihw(w: Tensor) -> Tensor:
    """The document's (P+1, Q+1, R, K) seen as (K, R, P+1, Q+1)."""
    return w.permute(3, 2, 0, 1)


def as_contiguous_nhwc(x: Tensor) -> Tensor:
    """``x``, of four dimensions, lying in memory in their order: a copy where it does not.

    PyTorch calls ``x`` contiguous already where only dimensions of size 1 are out of order, but the next layer
    decides by strides.
    """
    if x.is_contiguous() and x.stride()[:2] == (x.shape[1:].numel(), x.shape[2:].numel()):
        return x
    return x.clone(memory_format=torch.contiguous_format)


def as_non_view(x: Tensor) -> Tensor:
    """``x``, a view of memory that nothing else refers to, as a tensor in its own right, without a copy.

    Autograd refuses to change a view in place that a Function returned: a ReLU with ``inplace=True`` after a
    convolution would fail.
    """
    if not is_plain_tensor(x) or torch.jit.is_tracing() or torch._C._len_torch_dispatch_stack():
        return x  # something is watching, which might not know what this is
    return x.new_empty(0).set_(x.untyped_storage(), x.storage_offset(), x.shape, x.stride())
