"""The kernels that compute formulas of ``manualgrad.ops`` on CUDA, each registered under its formula's name."""

from __future__ import annotations

from manualgrad.cuda.launch import CUDA, why_not_installed
from manualgrad.dispatch import FormulaKernel


def _kernels() -> tuple[FormulaKernel, ...]:
    if why_not_installed():  # the modules below import Triton
        return ()
    from manualgrad.cuda import conv2d, relu

    return (
        FormulaKernel("conv2d_forward_nchw", CUDA, conv2d.unsupported_conv2d_forward, conv2d.conv2d_forward),
        FormulaKernel("conv2d_grad_input_nchw", CUDA, conv2d.unsupported_conv2d_grad_input, conv2d.conv2d_grad_input),
        FormulaKernel(
            "conv2d_grad_weight_oihw", CUDA, conv2d.unsupported_conv2d_grad_weight, conv2d.conv2d_grad_weight
        ),
        FormulaKernel("relu_backward", CUDA, relu.unsupported_relu_backward, relu.relu_backward),
    )


KERNELS = _kernels()
