"""Promise: on CUDA a ReLU of any derivative at 0 takes no launch behind a convolution, and keeps a byte a result."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import manualgrad as mg
from manualgrad import kernels
from manualgrad import nn as ours
from manualgrad.cuda import conv2d_tiles
from manualgrad.dispatch import by_kernel
from manualgrad.ops.conv2d import conv2d_backward, conv2d_forward_nchw
from manualgrad.ops.conv_relu_sign import conv_relu_sign_forward
from manualgrad.ops.relu import relu_backward
from tests.cuda.conv2d_layers import (
    BATCH_LAST,
    COPIES,
    DEPTHWISE,
    DIRECT,
    GEMM,
    LAYERS,
    PACK,
    PACK_IMAGES,
    SUM,
    SUM_W,
    Layer,
    formula,
    new_memory_is_nan,
    operands,
    tf32,
)
from tests.network.chain_models import assert_equal, kept_bytes, one_by_one, run

NAN, INF, LEAST = float("nan"), float("inf"), 2.0**-24  # the least positive number of float16
BACKWARD = {  # the launches of backward with the bias's gradient
    "few channels, taps and channels on one axis": [PACK, GEMM, DIRECT],
    "contiguous, phases, correlation": [PACK, GEMM, PACK_IMAGES, DIRECT],
    "groups, two blocks of the batch": [PACK, GEMM, COPIES, BATCH_LAST],
    "depthwise": ["relu_backward", *DEPTHWISE[1:], SUM_W],
}


def whole_operands(layer: Layer, device: str, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    """Operands of −1, 0 and 1, whose sums are exact in every order and precision, and 0 for many results."""
    *tensors, geometry = operands(layer, device, dtype)
    return *(None if t is None else t.clamp_(-1, 1).round_() for t in tensors), geometry


def gradients(g, z, x, w, needs_grad, geometry):
    """Gradients for the derivative ½ at 0, by the kernel, and by its parts where it does not compute the call."""
    grads = by_kernel("conv_relu_backward", g, z, x, w, needs_grad, geometry, 0.5)
    return conv2d_backward(relu_backward(g, z, 0.5), x, w, needs_grad, geometry) if grads is None else grads


def assert_exact(grads, g, sign, x, w, needs_grad, geometry) -> None:
    """The gradients are those of the formulas in float64, bit for bit."""
    delta, x, w = (None if t is None else t.double() for t in (relu_backward.__wrapped__(g, sign, 0.5), x, w))
    assert delta.isfinite().all()
    exact = [grad for grad in conv2d_backward(delta, x, w, needs_grad, geometry) if grad is not None]
    assert all(torch.equal(grad.double(), expected) for grad, expected in zip(grads, exact, strict=True))


@pytest.mark.parametrize("name", BACKWARD)
def test_both_directions_equal_the_formula(kernel_device, launches, name) -> None:
    layer = LAYERS[name]
    x, w, b, geometry = whole_operands(layer, kernel_device)
    with tf32(False), new_memory_is_nan():
        actual, sign = conv_relu_sign_forward(x, w, b, geometry)
    assert launches == layer.launches[0]
    expected, expected_sign = formula(conv_relu_sign_forward, x, w, b, geometry)
    assert torch.equal(actual.double(), expected) and torch.equal(sign, expected_sign)
    assert sign.stride() == actual.stride() and set(sign.unique().tolist()) == {-1, 0, 1}
    launches.clear()
    g = torch.empty_like(actual).copy_(torch.randint(-2, 3, actual.shape))
    g[sign < 0] = INF
    with tf32(False), new_memory_is_nan():
        grads = gradients(g, sign, x, w, (True, True, True), geometry)
    assert launches == BACKWARD[name] and len(launches) <= 5
    assert_exact(grads, g, sign, x, w, (True, True, True), geometry)


def test_gradients_of_a_weight_alone(kernel_device, launches) -> None:
    layer = LAYERS["RGB, contiguous, batch last"]
    x, w, b, geometry = whole_operands(layer, kernel_device)
    _, sign = formula(conv_relu_sign_forward, x, w, b, geometry)
    g = torch.empty(sign.shape, device=kernel_device).copy_(torch.randint(-2, 3, sign.shape))
    with tf32(False), new_memory_is_nan():
        grads = gradients(g, sign, x, None, (False, True, True), geometry)
    assert launches == [COPIES, BATCH_LAST, SUM_W] and grads[0] is None
    assert_exact(grads[1:], g, sign, x, None, (False, True, True), geometry)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_sign_is_that_of_what_the_convolution_alone_stores(kernel_device, dtype, groups) -> None:
    """Zeros of both signs, NaN, infinities, and numbers that float16 rounds to 0."""
    layer = Layer((1, groups, 2, 4), (groups, 1, 1, 1), ([], [], []), groups=groups, bias=False)
    x, w, _, geometry = operands(layer, kernel_device, dtype)
    x.copy_(torch.tensor([0.0, -0.0, NAN, INF, -INF, 1.0, LEAST, -LEAST]).view(1, 1, 2, 4))
    w.fill_(0.25)
    with tf32(False):
        z = conv2d_forward_nchw(x, w, None, geometry)
        r, sign = conv_relu_sign_forward(x, w, None, geometry)
    least = 0 if dtype == torch.float16 else 1
    assert sign[0, 0].flatten().tolist() == [0, 0, 1, 1, -1, 1, least, -least]
    assert torch.equal(r.nan_to_num(7), z.clamp(min=0).nan_to_num(7))
    derivative, expected = (relu_backward.__wrapped__(torch.ones_like(z), a, 0.5) for a in (sign, z))
    assert torch.equal(derivative, expected)


def test_the_sum_of_parts_has_the_sign(kernel_device, launches, monkeypatch) -> None:
    monkeypatch.setitem(conv2d_tiles._FEW, "3xtf32", (1.6, 2))  # sums of two blocks or more are long
    x, w, b, geometry = whole_operands(Layer((1, 17, 2, 3), (33, 17, 2, 2), ([], [], [])), kernel_device)
    with tf32(False):
        r, sign = conv_relu_sign_forward(x, w, b, geometry)
    expected, expected_sign = formula(conv_relu_sign_forward, x, w, b, geometry)
    assert torch.equal(r.double(), expected) and torch.equal(sign, expected_sign)
    assert launches == [PACK, GEMM, SUM]


def make_pair(groups: int = 1, subgradient: float = 0.5) -> mg.Sequential:
    """A convolution of few whole numbers, and its ReLU."""
    pair = mg.Sequential(ours.Conv2d(4, 4, 2, groups=groups), ours.ReLU(subgradient=subgradient))
    for parameter in pair.parameters():
        nn.init.uniform_(parameter, -1.4, 1.4).data.round_()
    return pair


@pytest.mark.parametrize(
    ("groups", "dtype", "subgradient"),
    [(1, torch.float16, 0.5), (2, torch.float32, 0.5), (4, torch.float16, 0.5), (4, torch.float32, 0.0)],
)
def test_the_pair_equals_its_layers_and_keeps_less(kernel_device, launches, groups, dtype, subgradient) -> None:
    pair = make_pair(groups, subgradient).to(kernel_device, dtype)
    x = torch.randn(2, 4, 3, 3).clamp(-1, 1).round().to(kernel_device, dtype)
    z = pair[0](x)
    assert (z == 0).any() and (z < 0).any() and (z > 0).any()
    assert_equal(pair, x, fused=1)
    launches.clear()
    run(pair, x)
    fused = launches.copy()
    launches.clear()
    run(one_by_one(pair), x)
    assert len(launches) - len(fused) == (0 if groups == 4 else 1), "the ReLU's backward"
    kept = z.numel() if subgradient else z.nbytes
    assert kept_bytes(pair, x) == x.nbytes + kept


@pytest.mark.parametrize("shape", [(2, 4, 3, 3), (4, 3, 3)])
def test_the_result_may_be_changed_in_place(kernel_device, shape) -> None:
    pair = make_pair(2).to(kernel_device)
    x = torch.randn(shape, device=kernel_device).clamp(-1, 1).round()
    grads = []
    for model in (pair, one_by_one(pair)):
        y = model(x).mul_(2)
        grads.append(torch.autograd.grad(y.sum(), list(model.parameters())))
    assert all(map(torch.equal, *grads))


def test_a_frozen_weight_whose_bias_is_not(kernel_device) -> None:
    pair = make_pair(4).to(kernel_device)
    pair[0].weight.requires_grad_(False)
    assert_equal(pair, torch.randn(2, 4, 3, 3, device=kernel_device).clamp(-1, 1).round(), fused=1)


def formulas(model: nn.Module, x: Tensor) -> list[str]:
    return [record.formula for record in kernels.explain(model, x).records if record.formula != "Sequential"]


def test_what_is_not_differentiated_keeps_no_sign(kernel_device) -> None:
    pair = make_pair(1).to(kernel_device)
    x = torch.randn(2, 4, 3, 3, device=kernel_device)
    with torch.no_grad():
        assert formulas(pair, x) == ["conv_relu_forward"]
    assert formulas(pair, x) == ["conv_relu_sign_forward"]
    assert formulas(pair.requires_grad_(False), x) == ["conv_relu_forward"]
    assert formulas(pair.double(), x.double())[-1] == "relu_forward", "no kernel computes float64"
