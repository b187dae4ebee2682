"""A complex input whose gradient lacks a conj. Expected: a finding about z, in PyTorch's convention."""

import torch
from torch.autograd import Function

import compare


class Square(Function):
    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return z * z

    @staticmethod
    def backward(ctx, g):
        (z,) = ctx.saved_tensors
        return 2 * g * z  # 2 * g * z.conj() is right


CASES = [
    compare.Case(
        "square",
        lambda z, s: torch.view_as_real(Square.apply(z)) * s,
        lambda z, s: torch.view_as_real(z * z) * s,
        lambda: {"z": torch.randn(4, 3, dtype=torch.complex128), "s": torch.randn(4, 3, 2)},
    )
]
