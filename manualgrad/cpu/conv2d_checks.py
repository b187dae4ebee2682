"""Checks of the tensors of a general convolution: those that its kernels do not compute, and shapes that do not fit.

``geometry`` is a ``Conv2dGeometry`` of ``ops/conv2d_geometry.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from manualgrad._torch_compat import ORDINARY_CPU_KEYS, dispatch_keys
from manualgrad.cpu.tensor_checks import TOO_SMALL, span_in_memory, unsupported_tensor, unsupported_tensors
from manualgrad.tensor_checks import PLAIN_TYPES


def unsupported(fits: Callable[..., bool], geometry: Any, *tensors: Tensor) -> str:
    """Return the reason why kernels do not support the tensors, or ``fits`` of their shapes is False; else ""."""
    if torch.compiler.is_compiling():
        reason = unsupported_tensors(*tensors)
        return reason or ("" if fits(geometry, *[x.shape for x in tensors]) else MISFIT)
    for x in tensors:
        is_ordinary = type(x) in PLAIN_TYPES and dispatch_keys(x).raw_repr() == ORDINARY_CPU_KEYS
        if not (is_ordinary and x.dtype is torch.float32) and (reason := unsupported_tensor(x)):
            return reason
    spans = _spans(fits, geometry, *[(x.shape, x.stride()) for x in tensors])
    if spans is None:
        return MISFIT
    for x, span in zip(tensors, spans, strict=True):
        if span and x.untyped_storage().nbytes() < (x.storage_offset() + span) * FLOAT_BYTES:
            return TOO_SMALL
    return ""


MISFIT = "the geometry is not that of the tensors"
FLOAT_BYTES = 4


@lru_cache(maxsize=1024)
def _spans(
    fits: Callable[..., bool], geometry: Any, *formats: tuple[Sequence[int], Sequence[int]]
) -> tuple[int, ...] | None:
    """Elements from the first to the last in memory of tensors with these shapes and strides, if the shapes fit."""
    if not fits(geometry, *[shape for shape, _ in formats]):
        return None
    return tuple(span_in_memory(shape, strides) for shape, strides in formats)


def fits_forward(
    geometry: Any, x_shape: Sequence[int], w_shape: Sequence[int], b_shape: Sequence[int] | None = None
) -> bool:
    fits = _is_input(geometry, x_shape, w_shape[1]) and _is_weight(geometry, w_shape)
    return fits and (b_shape is None or tuple(b_shape) == (w_shape[0],))


def fits_grad_input(geometry: Any, g_shape: Sequence[int], w_shape: Sequence[int]) -> bool:
    return _is_output(geometry, g_shape, w_shape[0]) and _is_weight(geometry, w_shape)


def fits_grad_weight(geometry: Any, g_shape: Sequence[int], x_shape: Sequence[int]) -> bool:
    fits = _is_input(geometry, x_shape, x_shape[1] // geometry.groups) and _is_output(geometry, g_shape, g_shape[1])
    return fits and g_shape[0] == x_shape[0]


def fits_backward(geometry: Any, g_shape: Sequence[int], x_shape: Sequence[int], w_shape: Sequence[int]) -> bool:
    return fits_grad_input(geometry, g_shape, w_shape) and fits_grad_weight(geometry, g_shape, x_shape)


def _is_input(geometry: Any, shape: Sequence[int], group_channels: int) -> bool:
    return tuple(shape[1:]) == (group_channels * geometry.groups, *geometry.input_size)


def _is_weight(geometry: Any, shape: Sequence[int]) -> bool:
    return bool(tuple(shape[2:]) == geometry.windows.kernel_size and shape[0] % geometry.groups == 0)


def _is_output(geometry: Any, shape: Sequence[int], channels: int) -> bool:
    size = geometry.windows.output_size(*geometry.input_size)
    return tuple(shape[1:]) == (channels, *size) and channels % geometry.groups == 0
