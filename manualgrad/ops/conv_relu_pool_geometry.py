"""Geometry of convolution, ReLU and 2×2 pooling as one operation: its arguments that are not tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from manualgrad.ops.conv2d_geometry import Conv2dGeometry, make_conv2d_geometry
from manualgrad.ops.max_pool2d_geometry import MaxPool2dGeometry, make_max_pool2d_geometry
from manualgrad.tensor_checks import is_plain_tensor

MAX_CACHED_GEOMETRIES = 256


@dataclass(frozen=True)
class ConvReLUPoolGeometry:
    """Geometry of the convolution on x, of the pooling on z, and R'(0)."""

    convolution: Conv2dGeometry
    pooling: MaxPool2dGeometry
    subgradient: float


def make_conv_relu_pool_geometry(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int | tuple[int, int],
    padding: int | tuple[int, int] | str,
    flip_kernel: bool,
    subgradient: float,
) -> ConvReLUPoolGeometry:
    """Check the arguments of ``conv2d_relu_max_pool2d`` and return their geometry.

    A layer has the same geometry in every step, so results are cached.

    Raises:
        TypeError, ValueError: as :func:`make_conv2d_geometry` and :func:`make_max_pool2d_geometry`.
    """
    numbers = stride, padding, flip_kernel, subgradient
    is_cacheable = all(t is None or is_plain_tensor(t) for t in (input, weight, bias)) and all(
        map(_is_exact_key, numbers)
    )

    def make_geometry() -> ConvReLUPoolGeometry:
        convolution = make_conv2d_geometry(input, weight, bias, stride, padding, 1, 1, flip_kernel)
        output_size = convolution.windows.output_size(*convolution.input_size)
        pooling = make_max_pool2d_geometry((weight.shape[0], *output_size), 2, None, 0, 1, False)
        return ConvReLUPoolGeometry(convolution, pooling, subgradient)

    if not is_cacheable:
        return make_geometry()
    key = input.shape[-3:], weight.shape, bias is None or bias.shape, *numbers, *map(type, numbers)
    geometry = _cache.get(key)
    if geometry is None:
        if len(_cache) == MAX_CACHED_GEOMETRIES:
            _cache.clear()
        geometry = _cache[key] = make_geometry()
    return geometry


_cache: dict[tuple[Any, ...], ConvReLUPoolGeometry] = {}


def _is_exact_key(argument: object) -> bool:
    """Return True if ``argument`` and its type are an unambiguous key; 1, 1.0 and True are equal as keys."""
    return type(argument) in (int, float, bool, str) or (
        type(argument) is tuple and all(type(number) is int for number in argument)
    )
