"""Calls of the conv_pool kernels, after a check that they support the arguments.

``geometry`` is a ``ConvReLUPoolGeometry`` of ``ops/conv_relu_pool_geometry.py`` in all functions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from manualgrad._torch_compat import assume_constant_result
from manualgrad.cpu import instruction_set
from manualgrad.cpu.tensor_checks import supports_tensors


def try_forward(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Any) -> tuple[Tensor, Tensor] | None:
    """Return P(R(C(x, w) + b)) and its pooling indices, both (N, C_out, H_out, W_out), or None if kernels do not
    support the arguments."""
    if not _supports_geometry(geometry) or not supports_tensors(x, weight, bias):
        return None
    if (module := instruction_set.current_module()) is None:
        return None
    from manualgrad.cpu import conv_pool

    return conv_pool.run_forward(module, x, weight, bias, geometry.convolution.flip_kernel)


def try_backward(
    grad_out: Tensor,
    x: Tensor | None,
    weight: Tensor | None,
    pool_index: Tensor,
    geometry: Any,
    needs_grad: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor] | None:
    """Return the gradients of x and weight, as ``needs_grad``, and of the bias, or None if kernels do not support
    the arguments or the numbers.

    x may be None if the weight gradient is not needed, weight if the input gradient is not needed."""
    needs_grad_input, needs_grad_weight = needs_grad
    if not any(needs_grad) or not _supports_geometry(geometry) or not supports_tensors(grad_out, x, weight):
        return None
    if (module := instruction_set.current_module()) is None:
        return None
    from manualgrad.cpu import conv_pool

    given = x if x is not None else weight
    assert given is not None
    shapes = (
        (grad_out.shape[0], given.shape[1], *geometry.convolution.input_size),
        (grad_out.shape[1], given.shape[1], *geometry.convolution.windows.kernel_size),
    )
    x, weight = x if needs_grad_weight else None, weight if needs_grad_input else None
    flip, subgradient = geometry.convolution.flip_kernel, geometry.subgradient
    return conv_pool.run_backward(module, grad_out, x, weight, pool_index, shapes, flip, subgradient)


def supports_traced(geometry: Any, *tensors: Tensor | None) -> bool:
    """Return True if kernels will support these tensors, which torch.compile traces and which have no values yet."""
    return (
        _supports_geometry(geometry)
        and all(t is None or (t.dtype is torch.float32 and t.device.type == "cpu") for t in tensors)
        and _kernels_in_use()
    )


@assume_constant_result
def _kernels_in_use() -> bool:
    return instruction_set.current_module() is not None


def _supports_geometry(geometry: Any) -> bool:
    windows = geometry.convolution.windows
    return bool(
        windows.stride == (1, 1)
        and windows.dilation == (1, 1)
        and not any(windows.padding)
        and geometry.convolution.groups == 1
    )
