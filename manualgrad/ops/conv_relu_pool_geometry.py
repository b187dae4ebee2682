"""Geometry of convolution, ReLU and 2×2 pooling as one operation: its arguments that are not tensors."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from manualgrad.ops.conv2d_geometry import Conv2dGeometry, conv2d_geometry
from manualgrad.ops.max_pool2d_geometry import MaxPool2dGeometry, make_max_pool2d_geometry
from manualgrad.ops.tracers import untraced
from manualgrad.ops.value_cache import cached_by_value


@dataclass(frozen=True)
class ConvReLUPoolGeometry:
    """Geometry of the convolution on x, of the pooling on z, and R'(0)."""

    convolution: Conv2dGeometry
    pooling: MaxPool2dGeometry
    subgradient: float


@untraced
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

    Raises:
        TypeError, ValueError: as :func:`conv2d_geometry` and :func:`make_max_pool2d_geometry`.
    """
    bias_shape = None if bias is None else bias.shape
    return _geometry(input.shape, weight.shape, bias_shape, stride, padding, flip_kernel, subgradient)


@cached_by_value
def _geometry(
    input_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    bias_shape: tuple[int, ...] | None,
    stride: int | tuple[int, int],
    padding: int | tuple[int, int] | str,
    flip_kernel: bool,
    subgradient: float,
) -> ConvReLUPoolGeometry:
    convolution = conv2d_geometry(input_shape, weight_shape, bias_shape, stride, padding, 1, 1, flip_kernel, True)
    output_size = convolution.windows.output_size(*convolution.input_size)
    pooling = make_max_pool2d_geometry((weight_shape[0], *output_size), 2, None, 0, 1, False)
    return ConvReLUPoolGeometry(convolution, pooling, subgradient)
