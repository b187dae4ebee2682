"""Promise: layers computed together have the numbers and derivatives of the layers one by one, and keep less."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import manualgrad as mg
from manualgrad.ops import conv_relu
from manualgrad.ops.conv2d_geometry import make_conv2d_geometry
from manualgrad.ops.conv_relu import conv_relu_apply
from manualgrad.ops.conv_relu_sign import conv_relu_sign_apply
from manualgrad.ops.dense_relu import dense_relu_apply
from tests.network.chain_models import assert_equal, kept_bytes, num_fused, one_by_one, run

POOLS = [
    nn.MaxPool2d(2),
    nn.MaxPool2d(3, 2, 1),
    nn.MaxPool2d(3, (1, 2), dilation=(2, 1)),
    nn.MaxPool2d(3, 2, ceil_mode=True),
]


@pytest.mark.parametrize("pool", POOLS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_relu_of_the_maxima_has_the_bits_of_the_maxima_of_the_relu(pool, dtype):
    native = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(inplace=True), pool, nn.Flatten(0, 1), nn.ReLU(), pool)
    model = mg.from_torch(native).to(dtype)
    x = torch.randn(4, 3, 17, 16, generator=torch.Generator().manual_seed(0))
    x[:, 1] = x[:, 1].round()  # ties, zeros among them
    assert_equal(model, x.to(dtype))
    assert_equal(model.eval(), x.to(dtype))
    for value in (torch.nan, torch.inf, -torch.inf):
        x[0, 0, 3:6, 2:9] = value
        actual, expected = (run(m[4:], x.to(dtype)) for m in (model, one_by_one(model)))
        assert all(torch.equal(a.nan_to_num(7), e.nan_to_num(7)) for a, e in zip(actual, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(5, 4), (2, 3, 4), (4,), (0, 4)])
def test_a_dense_layer_and_its_relu(dtype, shape):
    torch.manual_seed(0)
    native = nn.Sequential(
        nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 2)
    )
    model = mg.from_torch(native).to(dtype)
    assert_equal(model, torch.randn(shape).to(dtype))
    model[0].weight.requires_grad_(False)
    model[2].register_forward_hook(lambda *_: None)
    assert_equal(model, torch.randn(shape).to(dtype), fused=1)


def test_the_result_is_freed_before_the_gradients_of_the_convolution_unless_the_graph_is_kept(monkeypatch):
    inputs = [torch.randn(shape, requires_grad=True) for shape in ((2, 3, 5, 5), (4, 3, 3, 3))]
    z, is_freed, backward = conv_relu.conv2d_relu(*inputs, None, 1, 1, 1, 1, False), [], conv_relu.conv2d_backward

    def conv2d_backward(*args):
        try:
            z.grad_fn.saved_tensors  # noqa: B018
            is_freed.append(False)
        except RuntimeError:
            is_freed.append(True)
        return backward(*args)

    monkeypatch.setattr(conv_relu, "conv2d_backward", conv2d_backward)
    kept, freed = (torch.autograd.grad(z.sum(), inputs, retain_graph=keep) for keep in (True, False))
    assert is_freed == [False, True]
    assert all(map(torch.equal, kept, freed))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(z.sum(), inputs)


def test_the_maxima_are_kept_in_place_of_the_pixels():
    model = mg.from_torch(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2)))
    x = torch.randn(2, 3, 18, 18, generator=torch.Generator().manual_seed(0))
    pixels, maxima = 2 * 8 * 16 * 16 * 4, 2 * 8 * 8 * 8 * 4
    assert kept_bytes(one_by_one(model), x) - kept_bytes(model, x) == pixels - maxima


def test_the_result_of_a_pooling_may_be_changed_in_place():
    model = mg.from_torch(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.5, inplace=True))
    )
    grads = []
    for m in (model, one_by_one(model)):
        torch.manual_seed(0)
        y = m(torch.ones(2, 3, 18, 18)).sub_(1)
        grads.append(torch.autograd.grad(y.square().sum(), list(m.parameters())))
    assert all(torch.equal(a, e) for a, e in zip(*grads, strict=True))


def test_forward_mode_and_second_derivatives_of_a_chain():
    torch.manual_seed(0)
    layers = nn.Conv2d(2, 2, 2), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2, 3), nn.ReLU()
    model = mg.from_torch(nn.Sequential(*layers)).double()
    x = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert num_fused(model, x) == 2
    assert torch.autograd.gradcheck(model, x, check_forward_ad=True) and torch.autograd.gradgradcheck(model, x)
    assert torch.autograd.gradcheck(model[:3], x[0].detach().requires_grad_(), check_forward_ad=True)


def test_derivatives_of_the_dense_function():
    torch.manual_seed(0)
    tensors = tuple(torch.randn(*shape, dtype=torch.float64).requires_grad_() for shape in ((3, 2), (4, 2), (4,)))
    assert torch.autograd.gradcheck(dense_relu_apply, tensors, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(dense_relu_apply, tensors)
    x, w, b = (t.detach() for t in tensors)
    batch = torch.stack([x, -x])
    actual = torch.vmap(lambda x: dense_relu_apply(x, w, b))(batch)
    torch.testing.assert_close(actual, torch.stack([dense_relu_apply(x, w, b) for x in batch]))


def test_derivatives_of_the_function():
    torch.manual_seed(0)
    x, w, b = (torch.randn(*shape, dtype=torch.float64) for shape in ((1, 2, 3, 3), (2, 2, 2, 2), (2,)))
    geometry = make_conv2d_geometry(x, w, b, 1, 0, 1, 1, False, True)
    tensors = tuple(t.requires_grad_() for t in (x, w, b))
    assert torch.autograd.gradcheck(lambda *t: conv_relu_apply(*t, geometry), tensors, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda *t: conv_relu_apply(*t, geometry), tensors)
    batch = torch.stack([x.detach(), -x.detach()])
    actual = torch.vmap(lambda x: conv_relu_apply(x, w, b, geometry))(batch)
    torch.testing.assert_close(actual, torch.stack([conv_relu_apply(x, w, b, geometry) for x in batch]))


def test_derivatives_of_the_function_that_keeps_the_sign():
    torch.manual_seed(0)
    shapes = (2, 2, 3, 3), (3, 2, 2, 2), (3,)
    x, w, b = (torch.randn(*shape, dtype=torch.float64).requires_grad_() for shape in shapes)
    geometry = make_conv2d_geometry(x, w, b, 1, 0, 1, 1, True, True)

    def pair(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return conv_relu_sign_apply(x, w, b, geometry, 0.5)[0]

    assert torch.autograd.gradcheck(pair, (x, w, b), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(pair, (x, w, b))
    vectorised = torch.vmap(lambda x: pair(x[None], w, b)[0])(x)
    torch.testing.assert_close(vectorised, pair(x, w, b))
    at_zero = tuple(torch.zeros_like(t) for t in (x, w, b))
    _, tangent = torch.func.jvp(pair, at_zero, (*at_zero[:2], torch.ones_like(b)))
    assert (tangent == 0.5).all()
