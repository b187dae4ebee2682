"""The kernels that compute formulas of ``manualgrad.ops`` on the CPU, each registered under its formula's name.

``geometry`` is here a ``ConvReLUPoolGeometry`` of ``ops/conv_relu_pool_geometry.py``.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from manualgrad.cpu import conv2d, conv_pool, dense, instruction_set, max_pool2d
from manualgrad.cpu import row_kernels as rows
from manualgrad.cpu import small_kernels as small
from manualgrad.cpu.jit import KernelModule
from manualgrad.cpu.tensor_checks import unsupported_tensors
from manualgrad.dispatch import Backend, FormulaKernel

Grads = tuple[Tensor | None, Tensor | None, Tensor | None]


def _unsupported_geometry(geometry: Any) -> str:
    windows, groups = geometry.convolution.windows, geometry.convolution.groups
    if windows.stride != (1, 1) or windows.dilation != (1, 1) or any(windows.padding) or groups != 1:
        return "the convolution has a stride, a dilation, padding or groups"
    return ""


def _unsupported_conv_relu_pool(x: Tensor, w: Tensor, b: Tensor | None, geometry: Any) -> str:
    return _unsupported_geometry(geometry) or unsupported_tensors(x, w, b)


def _conv_relu_pool(
    module: KernelModule, x: Tensor, w: Tensor, b: Tensor | None, geometry: Any
) -> tuple[Tensor, Tensor]:
    return conv_pool.run_forward(module, x, w, b, geometry.convolution.flip_kernel)


def _unsupported_conv_relu_pool_backward(
    g: Tensor, x: Tensor | None, w: Tensor | None, pool_index: Tensor, geometry: Any, needs_grad: tuple[bool, ...]
) -> str:
    if not any(needs_grad[:2]):
        return "only the bias needs a gradient"
    return _unsupported_geometry(geometry) or unsupported_tensors(g, x, w)


def _conv_relu_pool_backward(
    module: KernelModule, g: Tensor, x: Tensor | None, w: Tensor | None, pool_index: Tensor, geometry: Any,
    needs_grad: tuple[bool, ...],
) -> Grads | None:  # fmt: skip
    x_or_w = x if x is not None else w
    assert x_or_w is not None  # one of them needs a gradient, and the other is its factor
    convolution, channels = geometry.convolution, x_or_w.shape[1]
    shapes = (
        (g.shape[0], channels, *convolution.input_size),
        (g.shape[1], channels, *convolution.windows.kernel_size),
    )
    x, w = x if needs_grad[1] else None, w if needs_grad[0] else None
    grads = conv_pool.run_backward(module, g, x, w, pool_index, shapes, convolution.flip_kernel, geometry.subgradient)
    return None if grads is None else (*grads[:2], grads[2] if needs_grad[2] else None)


CPU = Backend("cpu", instruction_set.current_module, instruction_set.why_none)
NONFINITE = "an element of x or w is not finite, and the kernel skips products with 0"
NONFINITE_WEIGHT = "a weight is not finite, and the kernel multiplies some weights with zeros"
NONFINITE_SUM = "a sum is not finite, and the kernel leaves out zeros outside the image"
INVALID = "a label is no class, or none counts"
KERNELS = (
    FormulaKernel("conv_relu_pool_forward", CPU, _unsupported_conv_relu_pool, _conv_relu_pool),
    FormulaKernel(
        "conv_relu_pool_backward", CPU, _unsupported_conv_relu_pool_backward, _conv_relu_pool_backward, NONFINITE
    ),
    FormulaKernel(
        "conv2d_forward_nchw", CPU, conv2d.unsupported_conv2d_forward, conv2d.conv2d_forward, NONFINITE_WEIGHT
    ),
    FormulaKernel(
        "conv_relu_forward", CPU, conv2d.unsupported_conv_relu_forward, conv2d.conv_relu_forward, NONFINITE_WEIGHT
    ),
    FormulaKernel(
        "conv2d_grad_input_nchw",
        CPU,
        conv2d.unsupported_conv2d_grad_input,
        conv2d.conv2d_grad_input,
        NONFINITE_WEIGHT,
    ),
    FormulaKernel(
        "conv2d_backward",
        CPU,
        conv2d.unsupported_conv2d_backward,
        conv2d.conv2d_backward,
        f"{NONFINITE_WEIGHT}; or {NONFINITE_SUM}",
    ),
    FormulaKernel(
        "conv2d_grad_weight_oihw",
        CPU,
        conv2d.unsupported_conv2d_grad_weight,
        conv2d.conv2d_grad_weight,
        NONFINITE_SUM,
    ),
    FormulaKernel(
        "conv2d_grad_weight_and_bias",
        CPU,
        conv2d.unsupported_conv2d_grad_weight,
        conv2d.conv2d_grad_weight_and_bias,
        NONFINITE_SUM,
    ),
    FormulaKernel("dense_forward", CPU, dense.unsupported_dense_forward, dense.dense_forward),
    FormulaKernel(
        "max_pool2d_forward", CPU, max_pool2d.unsupported_max_pool2d_forward, max_pool2d.max_pool2d_forward
    ),
    FormulaKernel(
        "max_pool2d_forward_nchw",
        CPU,
        max_pool2d.unsupported_max_pool2d_forward_nchw,
        max_pool2d.max_pool2d_forward_nchw,
    ),
    FormulaKernel(
        "max_pool2d_backward", CPU, max_pool2d.unsupported_max_pool2d_backward, max_pool2d.max_pool2d_backward
    ),
    FormulaKernel("relu_backward", CPU, small.unsupported_relu_backward, small.relu_backward),
    FormulaKernel("softmax_forward", CPU, rows.unsupported_softmax_forward, rows.softmax_forward),
    FormulaKernel("softmax_backward", CPU, rows.unsupported_softmax_backward, rows.softmax_backward),
    FormulaKernel("cross_entropy_forward", CPU, small.unsupported_cross_entropy_forward, small.cross_entropy_forward),
    FormulaKernel(
        "cross_entropy_backward", CPU, small.unsupported_cross_entropy_backward, small.cross_entropy_backward
    ),
    FormulaKernel(
        "cross_entropy_from_labels",
        CPU,
        rows.unsupported_cross_entropy_from_labels,
        rows.cross_entropy_from_labels,
        INVALID,
    ),
    FormulaKernel(
        "cross_entropy_from_labels_backward",
        CPU,
        rows.unsupported_cross_entropy_from_labels_backward,
        rows.cross_entropy_from_labels_backward,
    ),
    FormulaKernel(
        "targets_from_labels", CPU, small.unsupported_targets_from_labels, small.targets_from_labels, INVALID
    ),
)
