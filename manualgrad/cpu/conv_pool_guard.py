"""Whether the compiled kernels serve for P(R(C(x, w) + b)), and their results if so."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from manualgrad.cpu import instruction_set
from manualgrad.cpu.tensor_checks import supports_tensors


def forward(x: Tensor, w: Tensor, b: Tensor | None, geometry: Any) -> tuple[Tensor, Tensor] | None:
    """P(R(z)) and the codes, (B, K, I, J); None where the formula serves. ``geometry`` is that of
    ``ops/conv_relu_pool.py``."""
    if not _fits(geometry) or not supports_tensors(x, w, b) or (code := instruction_set.in_use()) is None:
        return None
    from manualgrad.cpu import conv_pool

    return conv_pool.forward(code, x, w, b, geometry.convolution.flip)


def backward(
    g: Tensor, x: Tensor | None, w: Tensor | None, codes: Tensor, geometry: Any, needed: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor] | None:
    """Gradients of x and w, as ``needed``, and of b; None where the formula serves. x may be missing where only its
    own gradient is needed, and w too."""
    for_x, for_w = needed
    if not (for_x or for_w) or not _fits(geometry) or not supports_tensors(g, x, w):
        return None
    if (code := instruction_set.in_use()) is None:
        return None
    from manualgrad.cpu import conv_pool

    channels = (x if x is not None else w).shape[1]
    shapes = (
        (g.shape[0], channels, *geometry.convolution.size),
        (g.shape[1], channels, *geometry.convolution.windows.kernel_size),
    )
    x, w = x if for_w else None, w if for_x else None
    return conv_pool.backward(code, g, x, w, codes, shapes, geometry.convolution.flip, geometry.subgradient)


def would_serve(geometry: Any, *tensors: Tensor | None) -> bool:
    """For the compiler, while it traces tensors that hold nothing yet: whether a kernel will take them."""
    return (
        _fits(geometry)
        and all(t is None or (t.dtype is torch.float32 and t.device.type == "cpu") for t in tensors)
        and _are_there()
    )


@torch.compiler.assume_constant_result
def _are_there() -> bool:
    return instruction_set.in_use() is not None


def _fits(geometry: Any) -> bool:
    """Stride 1, nothing padded, nothing spread, one group."""
    windows = geometry.convolution.windows
    return (
        windows.stride == (1, 1)
        and windows.dilation == (1, 1)
        and not any(windows.padding)
        and geometry.convolution.groups == 1
    )
