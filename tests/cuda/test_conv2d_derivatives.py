"""Promise: a convolution on CUDA is differentiated by kernels: backward, twice, and forward mode."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from manualgrad import kernels
from manualgrad.functional import conv2d
from tests.cuda.conv2d_layers import BATCH_LAST, COPIES, GEMM, PACK, SUM_W, assert_near, tf32


def test_forward_backward_and_double_backward(kernel_device, launches) -> None:
    """Forward takes two launches, backward five. Kernels compute second derivatives too."""
    tensors = [torch.randn(s).to(kernel_device) for s in ((9, 3, 4, 4), (4, 3, 2, 2), (4,), (9, 4, 3, 3))]

    def second_derivatives(x: Tensor, w: Tensor, b: Tensor, v: Tensor) -> list[Tensor]:
        leaves = [t.detach().requires_grad_() for t in (x, w, b, v)]
        y = conv2d(*leaves[:3])
        first = torch.autograd.grad(y, leaves[:3], leaves[3], create_graph=True)
        launched.append(list(launches))
        second = torch.autograd.grad(sum((t**2).sum() for t in first[:2]), leaves[:2] + leaves[3:])
        return [t.detach() for t in (*first, *second)]

    launched: list[list[str]] = []
    with tf32(False):
        actual = second_derivatives(*tensors)
    assert launched == [[PACK, GEMM, PACK, GEMM, COPIES, BATCH_LAST, SUM_W]]
    assert launches.count(GEMM) >= 4
    launches.clear()
    leaves = [t.detach().requires_grad_() for t in tensors[:3]]
    with tf32(False):
        explanation = kernels.explain(lambda: torch.autograd.grad(conv2d(*leaves), leaves, tensors[3]))
    assert launches == launched[0]
    assert [record.formula for record in explanation.records] == [
        "conv2d_forward_nchw", "conv2d_grad_input_nchw", "conv2d_grad_weight_and_bias"
    ]  # fmt: skip
    for a, e in zip(explanation.result, actual[:3], strict=True):
        assert_near(a, e.double(), 3e-7)
    for a, e in zip(actual, second_derivatives(*(t.double() for t in tensors)), strict=True):
        assert_near(a, e, 1e-6)


def test_forward_mode(kernel_device, launches) -> None:
    tensors = [torch.randn(s).to(kernel_device) for s in ((2, 3, 3, 3), (4, 3, 2, 2), (4,))] * 2

    def tangent(*tensors: Tensor) -> Tensor:
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(*pair) for pair in zip(tensors[:3], tensors[3:], strict=True)]
            return forward_ad.unpack_dual(conv2d(*duals)).tangent

    with tf32(False):
        assert_near(tangent(*tensors), tangent(*(t.double() for t in tensors)), 6e-7)
    assert launches == [PACK, GEMM] * 3
