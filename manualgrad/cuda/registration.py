"""The kernels that compute formulas of ``manualgrad.ops`` on CUDA, each registered under its formula's name."""

from __future__ import annotations

from manualgrad.cuda.launch import CUDA, why_not_installed
from manualgrad.dispatch import FormulaKernel


def _kernels() -> tuple[FormulaKernel, ...]:
    if why_not_installed():  # the modules below import Triton
        return ()
    from manualgrad.cuda import max_pool2d as pool
    from manualgrad.cuda import relu

    return (
        FormulaKernel("relu_backward", CUDA, relu.unsupported_relu_backward, relu.relu_backward),
        FormulaKernel("max_pool2d_forward", CUDA, pool.unsupported_max_pool2d_forward, pool.max_pool2d_forward),
        FormulaKernel("max_pool2d_backward", CUDA, pool.unsupported_max_pool2d_backward, pool.max_pool2d_backward),
        FormulaKernel("relu_pool_forward", CUDA, pool.unsupported_relu_pool_forward, pool.relu_pool_forward),
        FormulaKernel("relu_pool_backward", CUDA, pool.unsupported_relu_pool_backward, pool.relu_pool_backward),
    )


KERNELS = _kernels()
