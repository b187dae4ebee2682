"""The kernels that compute formulas of ``manualgrad.ops`` on CUDA, each registered under its formula's name."""

from __future__ import annotations

from manualgrad.cuda.launch import CUDA, why_not_installed
from manualgrad.dispatch import FormulaKernel


def _kernels() -> tuple[FormulaKernel, ...]:
    if why_not_installed():  # the modules below import Triton
        return ()
    from manualgrad.cuda import conv2d, conv_relu, conv_relu_pool, cross_entropy, relu, softmax
    from manualgrad.cuda import max_pool2d as pool

    return (
        FormulaKernel("conv2d_forward_nchw", CUDA, conv2d.unsupported_conv2d_forward, conv2d.conv2d_forward),
        FormulaKernel("conv2d_grad_input_nchw", CUDA, conv2d.unsupported_conv2d_grad_input, conv2d.conv2d_grad_input),
        FormulaKernel(
            "conv2d_grad_weight_oihw", CUDA, conv2d.unsupported_conv2d_grad_weight, conv2d.conv2d_grad_weight
        ),
        FormulaKernel(
            "conv2d_grad_weight_and_bias",
            CUDA,
            conv2d.unsupported_conv2d_grad_weight_and_bias,
            conv2d.conv2d_grad_weight_and_bias,
        ),
        FormulaKernel("conv_relu_forward", CUDA, conv2d.unsupported_conv2d_forward, conv_relu.conv_relu_forward),
        FormulaKernel(
            "conv_relu_sign_forward", CUDA, conv2d.unsupported_conv2d_forward, conv_relu.conv_relu_sign_forward
        ),
        FormulaKernel(
            "conv_relu_backward", CUDA, conv_relu.unsupported_conv_relu_backward, conv_relu.conv_relu_backward
        ),
        FormulaKernel("relu_backward", CUDA, relu.unsupported_relu_backward, relu.relu_backward),
        FormulaKernel("max_pool2d_forward", CUDA, pool.unsupported_max_pool2d_forward, pool.max_pool2d_forward),
        FormulaKernel("max_pool2d_backward", CUDA, pool.unsupported_max_pool2d_backward, pool.max_pool2d_backward),
        FormulaKernel(
            "conv_relu_pool_forward",
            CUDA,
            conv_relu_pool.unsupported_conv_relu_pool_forward,
            conv_relu_pool.conv_relu_pool_forward,
        ),
        FormulaKernel("relu_pool_forward", CUDA, pool.unsupported_relu_pool_forward, pool.relu_pool_forward),
        FormulaKernel("relu_pool_backward", CUDA, pool.unsupported_relu_pool_backward, pool.relu_pool_backward),
        FormulaKernel("softmax_forward", CUDA, softmax.unsupported_softmax_forward, softmax.softmax_forward),
        FormulaKernel("softmax_backward", CUDA, softmax.unsupported_softmax_backward, softmax.softmax_backward),
        FormulaKernel(
            "cross_entropy_forward",
            CUDA,
            cross_entropy.unsupported_cross_entropy_forward,
            cross_entropy.cross_entropy_forward,
        ),
        FormulaKernel(
            "cross_entropy_backward",
            CUDA,
            cross_entropy.unsupported_cross_entropy_backward,
            cross_entropy.cross_entropy_backward,
        ),
        FormulaKernel(
            "cross_entropy_from_labels",
            CUDA,
            cross_entropy.unsupported_cross_entropy_from_labels,
            cross_entropy.cross_entropy_from_labels,
        ),
        FormulaKernel(
            "cross_entropy_from_labels_backward",
            CUDA,
            cross_entropy.unsupported_cross_entropy_from_labels_backward,
            cross_entropy.cross_entropy_from_labels_backward,
        ),
    )


WHY_NO_KERNELS = why_not_installed()
KERNELS = _kernels()
