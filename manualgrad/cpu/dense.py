"""Matrix products of dense layers by the kernels of a convolution, where they are faster than ``torch.mm``.

A dense layer is a convolution of one pixel: the N examples are the pixels of one image, and the features their
channels. ``torch.mm`` calls MKL, which is slower than the kernel on processors of AMD with AVX-512 if there are
enough examples for each weight that is packed.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from manualgrad.cpu import memory
from manualgrad.cpu.conv2d_programs import matrix_product_program
from manualgrad.cpu.conv_pool import to_contiguous
from manualgrad.cpu.jit import KernelModule, Unavailable, instruction_sets
from manualgrad.cpu.tensor_checks import unsupported_tensor

MIN_EXAMPLES, MIN_FEATURES = 1024, 256  # measured: with fewer, packing the weight takes too long
MAX_WEIGHTS = 1 << 22  # 16 MB: the packed copy is memory that torch.mm does not need


def unsupported_dense_forward(x: Tensor, w: Tensor, b: Tensor | None) -> str:
    """Return the reason why the kernel does not compute x w + b, "" if it does: x (N, in), w (in, out)."""
    if torch.compiler.is_compiling():
        return "the compiler has a matrix product of its own"
    (examples, features), channels = x.shape, w.shape[1]
    if examples < MIN_EXAMPLES or min(features, channels) < MIN_FEATURES or features * channels > MAX_WEIGHTS:
        return "torch.mm is as fast for a product of this size, or needs less memory"
    for matrix in (x, w) if b is None else (x, w, b):
        if reason := unsupported_tensor(matrix, covered=True):
            return reason
    if not x.is_contiguous() or x.is_neg():
        return "the rows of a factor are not contiguous"
    return why_not_faster()


def dense_forward(module: KernelModule, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """D(x, w) + b: (N, out)."""
    (examples, features), channels = x.shape, w.shape[1]
    w = w.resolve_neg() if w.is_contiguous() or w.t().is_contiguous() else to_contiguous(w)
    b = None if b is None else to_contiguous(b)
    program = matrix_product_program(
        module.instructions, (examples, features, channels), w.stride(), b is not None, torch.get_num_threads()
    )
    out = memory.new(examples, channels)
    program.run(x.data_ptr(), w.data_ptr(), 0 if b is None else b.data_ptr(), out.data_ptr())  # eq. (6), (17)
    return out


@cache
def why_not_faster() -> str:
    """Return the reason why the kernel is not faster than ``torch.mm`` on this machine, "" if it is."""
    try:
        is_wide = instruction_sets()[0] == "avx512"
    except Unavailable as error:
        return str(error)
    import llvmlite.binding as llvm

    is_wide_amd = is_wide and llvm.get_host_cpu_name().startswith("znver")
    return "" if is_wide_amd else "torch.mm is as fast on other processors than AMD's with AVX-512"
