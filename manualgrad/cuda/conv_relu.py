"""Convolution with ReLU on CUDA: the formulas of ``ops/conv_relu.py`` by the kernels of convolution.

Forward computes the ReLU before it stores the result, backward has the launch that copies the weight write δ of
equation (10) too, which both gradients read: ReLU takes no launch of its own. If the products read R(z) beside g
instead, they would read it once for every tap and tile, and need shared memory and registers for it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from manualgrad.cuda.conv2d import (
    conv2d_forward,
    conv2d_grad_weight,
    conv2d_grad_weight_and_bias,
    gather_gemm,
    new_result,
    unsupported_conv2d_grad_input,
    unsupported_conv2d_grad_weight,
)
from manualgrad.cuda.conv2d_depthwise import is_depthwise
from manualgrad.cuda.launch import Launcher
from manualgrad.cuda.tensor_checks import unsupported_tensors


def conv_relu_forward(launch: Launcher, x: Tensor, w: Tensor, b: Tensor | None, geometry: Any) -> Tensor:
    """R(C(x, w) + b) of equations (1), (17) and (9), in the memory format of the geometry."""
    return conv2d_forward(launch, x, w, b, geometry, relu=True)


def unsupported_conv_relu_backward(g: Tensor, r: Tensor, x: Tensor, w: Tensor, needs_b: bool, geometry: Any) -> str:
    """Return the reason why :func:`conv_relu_backward` does not support the arguments, "" if it does."""
    if g.shape != r.shape:
        return "g and R(z) differ in shape"
    if not g.numel():
        return "there are no images"
    if is_depthwise(w.shape[1], geometry):
        return "a depthwise convolution copies no weight"
    return (
        unsupported_conv2d_grad_input(g, w, geometry)
        or unsupported_conv2d_grad_weight(g, x, geometry)
        or unsupported_tensors(g, r, x, w)
    )


def conv_relu_backward(
    launch: Launcher, g: Tensor, r: Tensor, x: Tensor, w: Tensor, needs_b: bool, geometry: Any
) -> tuple[Tensor, Tensor, Tensor | None]:
    """X(δ, w), W(δ, x) and, if ``needs_b``, the sum of δ, which is g where r = R(z) > 0 or NaN, and 0 elsewhere."""
    batch, out_channels, out_height, out_width = g.shape
    grad_x = new_result(g, x.shape[1], geometry.input_size, geometry)
    images = gather_gemm(launch, grad_x, g, w, None, geometry, backward=True, r=r)  # eq. (10), (2)
    delta = images.tensor.view(batch, out_height, out_width, out_channels).permute(0, 3, 1, 2)
    if needs_b:
        return grad_x, *conv2d_grad_weight_and_bias(launch, delta, x, geometry)  # eq. (3), (17)
    return grad_x, conv2d_grad_weight(launch, delta, x, geometry), None
