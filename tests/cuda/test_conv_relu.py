"""Promise: convolution with ReLU on CUDA equals its formula, with the launches of the convolution alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import manualgrad as mg
from manualgrad import kernels
from manualgrad.cuda import conv2d_tiles
from manualgrad.dispatch import by_kernel
from manualgrad.ops.conv2d import conv2d_backward, conv2d_grad_input_nchw, conv2d_grad_weight_oihw
from manualgrad.ops.conv_relu import conv_relu_forward
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
    assert_near,
    formula,
    new_memory_is_nan,
    operands,
    tf32,
)

NAN, INF = float("nan"), float("inf")
DEPTHWISE_BACKWARD = ["relu_backward", *DEPTHWISE[1:]]
BACKWARD = {  # the launches of backward with the bias's gradient
    "few channels, taps and channels on one axis": [PACK, GEMM, DIRECT],
    "contiguous, phases, correlation": [PACK, GEMM, PACK_IMAGES, DIRECT],
    "RGB, contiguous, batch last": [PACK, GEMM, COPIES, BATCH_LAST, SUM_W],
    "groups, two blocks of the batch": [PACK, GEMM, COPIES, BATCH_LAST],
    "depthwise": [*DEPTHWISE_BACKWARD, SUM_W],
    "depthwise, two outputs a channel": DEPTHWISE_BACKWARD,
}


def gradients(g, r, x, w, needs_grad, geometry):
    """Gradients of x, w and the bias, by the kernel, and by its parts where it does not compute the call."""
    grads = by_kernel("conv_relu_backward", g, r, x, w, needs_grad, geometry)
    return conv2d_backward(relu_backward(g, r, 0), x, w, needs_grad, geometry) if grads is None else grads


def forward_formula(x: Tensor, w: Tensor, b: Tensor | None, geometry: Any) -> Tensor:
    return formula(conv_relu_forward, x, w, b, geometry)


def special_gradient(layer: Layer, geometry: Any) -> tuple[Tensor, Tensor]:
    """A result R(z) with zeros of both signs, NaN and infinity, and a gradient, not finite where R(z) is 0."""
    size = geometry.windows.output_size(*geometry.input_size)
    r, g = torch.randn(layer.x[0], layer.w[0], *size).relu(), torch.randn(layer.x[0], layer.w[0], *size)
    r.view(-1)[:4] = torch.tensor([0.0, -0.0, NAN, INF])
    g.view(-1)[:2] = torch.tensor([INF, NAN])
    return g, r


@pytest.mark.parametrize("name", BACKWARD)
def test_both_directions_equal_the_formula(kernel_device, launches, name) -> None:
    layer = LAYERS[name]
    x, w, b, geometry = operands(layer, kernel_device)
    memory_format = torch.channels_last if layer.channels_last else torch.contiguous_format
    with tf32(False), new_memory_is_nan():
        actual = conv_relu_forward(x, w, b, geometry)
    assert launches == layer.launches[0]
    assert actual.is_contiguous(memory_format=memory_format)
    assert_near(actual, forward_formula(x, w, b, geometry), 6e-7)
    launches.clear()
    g, r = (t.to(kernel_device).contiguous(memory_format=memory_format) for t in special_gradient(layer, geometry))
    with tf32(False), new_memory_is_nan():
        grad_x, grad_w, grad_b = gradients(g, r, x, w, (True, True, True), geometry)
    assert launches == BACKWARD[name]
    delta = relu_backward.__wrapped__(g, r, 0)
    assert delta.isfinite().all()
    assert grad_x.is_contiguous(memory_format=memory_format) and grad_w.is_contiguous(memory_format=memory_format)
    assert_near(grad_x, formula(conv2d_grad_input_nchw, delta, w, geometry), 6e-7)
    assert_near(grad_w, formula(conv2d_grad_weight_oihw, delta, x, geometry), 6e-7)
    assert_near(grad_b, delta.double().sum((0, 2, 3)), 6e-7)


@pytest.mark.parametrize("order", ["contiguous", "rows apart"])
def test_gradients_of_a_weight_alone(kernel_device, launches, order) -> None:
    """The copies of a first layer leave out what the ReLU does, if g and R(z) lie in the same order."""
    layer = LAYERS["RGB, contiguous, batch last"]
    x, _, _, geometry = operands(layer, kernel_device)
    g, r = (t.to(kernel_device).contiguous() for t in special_gradient(layer, geometry))
    if order == "rows apart":
        g = torch.cat([g, g], 3)[..., : g.shape[3]]
    with tf32(False), new_memory_is_nan():
        none, grad_w, grad_b = gradients(g, r, x, None, (False, True, True), geometry)
    assert launches == [*([] if order == "contiguous" else ["relu_backward"]), COPIES, BATCH_LAST, SUM_W]
    delta = relu_backward.__wrapped__(g, r, 0)
    assert none is None
    assert_near(grad_w, formula(conv2d_grad_weight_oihw, delta, x, geometry), 6e-7)
    assert_near(grad_b, delta.double().sum((0, 2, 3)), 6e-7)


def test_a_gradient_of_the_input_alone(kernel_device, launches) -> None:
    layer = LAYERS["few channels, taps and channels on one axis"]
    _, w, _, geometry = operands(layer, kernel_device)
    g, r = (t.to(kernel_device) for t in special_gradient(layer, geometry))
    with tf32(False):
        grad_x, *others = gradients(g, r, None, w, (True, False, False), geometry)
    assert launches == [PACK, GEMM] and others == [None, None]
    delta = relu_backward.__wrapped__(g, r, 0)
    assert_near(grad_x, formula(conv2d_grad_input_nchw, delta, w, geometry), 6e-7)


def test_float16_gradients_of_other_memory_orders(kernel_device, launches) -> None:
    """R(z) is channels_last, its gradient is expanded, and there is no bias."""
    layer = LAYERS["tails of tiles"]
    x, w, _, geometry = operands(layer, kernel_device, torch.float16)
    r = conv_relu_forward(x, w, None, geometry)
    assert_near(r, forward_formula(x, w, None, geometry), 4e-4)
    g = torch.randn(1, 1, 1, 1).to(kernel_device, torch.float16).expand_as(r)
    grad_x, grad_w, grad_b = gradients(g, r, x, w, (True, True, False), geometry)
    assert launches == [PACK, GEMM] * 2 + [DIRECT] and grad_b is None
    delta = relu_backward.__wrapped__(g, r, 0)
    assert_near(grad_x, formula(conv2d_grad_input_nchw, delta, w, geometry), 4e-4)
    assert_near(grad_w, formula(conv2d_grad_weight_oihw, delta, x, geometry), 4e-4)


@pytest.mark.parametrize("groups", [1, 4])
def test_results_that_are_not_finite(kernel_device, groups) -> None:
    layer = Layer((1, 4, 3, 3), (4, 4 // groups, 1, 1), ([], [], []), groups=groups)
    x, w, b, geometry = operands(layer, kernel_device)
    x[0, 0, 0, 0], x[0, 1, 1, 1], x[0, :, 2, 2] = NAN, INF, 0.0
    b[0], b[1], b[2] = 0.0, -INF, INF
    with tf32(False):
        actual, expected = conv_relu_forward(x, w, b, geometry), forward_formula(x, w, b, geometry)
    assert expected.isnan().any() and (expected == INF).any() and (expected[0, 0] == 0).any()
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5, equal_nan=True)  # three-pass sums


def test_the_sum_of_parts_has_the_epilogue(kernel_device, launches, monkeypatch) -> None:
    monkeypatch.setitem(conv2d_tiles._FEW, "3xtf32", (1.6, 2))  # sums of two blocks or more are long
    x, w, b, geometry = operands(Layer((1, 17, 2, 3), (33, 17, 2, 2), ([], [], [])), kernel_device)
    with tf32(False):
        assert_near(conv_relu_forward(x, w, b, geometry), forward_formula(x, w, b, geometry), 6e-7)
    assert launches == [PACK, GEMM, SUM]


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(5, 4, 2), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.conv(x))


@pytest.mark.parametrize("make", [Chain, lambda: nn.Sequential(nn.Conv2d(5, 4, 2), nn.ReLU())])
def test_a_converted_model_takes_no_launch_for_its_relu(kernel_device, launches, make) -> None:
    native = make().to(kernel_device)
    model = mg.from_torch(native)
    x = torch.randn(2, 5, 3, 3, device=kernel_device, requires_grad=True)
    with tf32(False):
        explanation = kernels.explain(lambda: torch.autograd.grad(model(x).sum(), [x, *model.parameters()]))
    assert launches == [PACK, GEMM, PACK, GEMM, PACK_IMAGES, DIRECT]
    assert [record.formula for record in explanation.records][-2:] == ["conv_relu_forward", "conv_relu_backward"]
    exact, x = native.double(), x.detach().double().requires_grad_()
    for actual, expected in zip(
        explanation.result, torch.autograd.grad(exact(x).sum(), [x, *exact.parameters()]), strict=True
    ):
        assert_near(actual, expected, 6e-7)
