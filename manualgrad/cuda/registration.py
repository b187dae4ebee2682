"""The kernels that compute formulas of ``manualgrad.ops`` on CUDA, each registered under its formula's name."""

from __future__ import annotations

from manualgrad.cuda.launch import CUDA, why_not_installed
from manualgrad.dispatch import FormulaKernel


def _kernels() -> tuple[FormulaKernel, ...]:
    if why_not_installed():  # the modules below import Triton
        return ()
    from manualgrad.cuda import relu

    return (FormulaKernel("relu_backward", CUDA, relu.unsupported_relu_backward, relu.relu_backward),)


KERNELS = _kernels()
