"""Convolution with ReLU on CUDA: the formulas of ``ops/conv_relu.py`` by the kernels of convolution.

Forward computes the ReLU before it stores the result, and stores the sign of z with it where the derivative at 0
needs it. In backward the launch that copies the weight writes δ of equation (10) too, which both gradients read;
without a gradient of the input, the launch that copies g for the weight's. So ReLU takes no launch of its own. If the
products read R(z) or the sign beside g instead, they would read it once for every tap and tile, and need shared
memory and registers for it. A depthwise convolution copies nothing, and reads δ from ``relu_backward``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from manualgrad.cuda.conv2d import (
    compute_conv2d,
    conv2d_forward,
    conv2d_grad_weight,
    conv2d_grad_weight_and_bias,
    gather_gemm,
    new_output,
    new_result,
    unsupported_conv2d_grad_input,
    unsupported_conv2d_grad_weight,
)
from manualgrad.cuda.conv2d_depthwise import is_depthwise
from manualgrad.cuda.conv2d_operands import ReLUDerivative
from manualgrad.cuda.conv2d_precision import precision_of
from manualgrad.cuda.conv2d_weight_gradient import copies_with_relu
from manualgrad.cuda.launch import Launcher
from manualgrad.cuda.relu import unsupported_with_derivative


def conv_relu_forward(launch: Launcher, x: Tensor, w: Tensor, b: Tensor | None, geometry: Any) -> Tensor:
    """R(C(x, w) + b) of equations (1), (17) and (9), in the memory format of the geometry."""
    return conv2d_forward(launch, x, w, b, geometry, relu=True)


def conv_relu_sign_forward(
    launch: Launcher, x: Tensor, w: Tensor, b: Tensor | None, geometry: Any
) -> tuple[Tensor, Tensor]:
    """The same, and the sign of z = C(x, w) + b: int8, in the memory format of the geometry."""
    y = new_output(x, w, geometry)
    sign = torch.empty_like(y, dtype=torch.int8)
    compute_conv2d(launch, y, x, w, b, geometry, relu=True, sign=sign)
    return y, sign


def unsupported_conv_relu_backward(
    g: Tensor, z: Tensor, x: Tensor | None, w: Tensor | None, needs_grad: Sequence[bool], geometry: Any,
    subgradient: float = 0.0,
) -> str:  # fmt: skip
    """Return the reason why :func:`conv_relu_backward` does not support the arguments, "" if it does."""
    needs_x, needs_w, needs_b = needs_grad
    if g.shape != z.shape:
        return "g and R(z) differ in shape"
    if not g.numel():
        return "there are no images"
    if (w is not None and is_depthwise(w.shape[1], geometry)) or (
        x is not None and is_depthwise(x.shape[1] // geometry.groups, geometry)
    ):
        return "a depthwise convolution copies no weight"
    if needs_b and not needs_w:
        return "the bias needs a gradient, and the weight none"
    if needs_x and w is not None and (reason := unsupported_conv2d_grad_input(g, w, geometry)):
        return reason
    if needs_w and x is not None and (reason := unsupported_conv2d_grad_weight(g, x, geometry)):
        return reason
    if reason := unsupported_with_derivative(z, g, x, w):
        return reason
    if not needs_x and not (x is not None and copies_with_relu(g, z, x, geometry, precision_of(g))):
        return "no launch copies g"
    return ""


def conv_relu_backward(
    launch: Launcher, g: Tensor, z: Tensor, x: Tensor | None, w: Tensor | None, needs_grad: Sequence[bool],
    geometry: Any, subgradient: float = 0.0,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """X(δ, w), W(δ, x) and the sum of δ, those that are needed; δ is g ∂R/∂z of equation (10).

    ``z`` is R(z) if the derivative ``subgradient`` at 0 is 0, and the int8 sign of z otherwise."""
    needs_x, needs_w, needs_b = needs_grad
    grad_x = grad_w = grad_b = None
    derivative: ReLUDerivative | None = ReLUDerivative(z, subgradient)
    if needs_x and w is not None:
        batch, channels, height, width = g.shape
        grad_x = new_result(g, w.shape[1] * geometry.groups, geometry.input_size, geometry)
        images = gather_gemm(launch, grad_x, g, w, None, geometry, backward=True, derivative=derivative)  # eq. (2)
        g, derivative = images.tensor.view(batch, height, width, channels).permute(0, 3, 1, 2), None  # eq. (10)
    if needs_b and x is not None:
        grad_w, grad_b = conv2d_grad_weight_and_bias(launch, g, x, geometry, derivative=derivative)  # eq. (3), (17)
    elif needs_w and x is not None:
        grad_w = conv2d_grad_weight(launch, g, x, geometry, derivative=derivative)
    return grad_x, grad_w, grad_b
