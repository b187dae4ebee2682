"""Promise: P(R(C + b)) as one Function equals the three operations, also in windows of tied zeros."""

from __future__ import annotations

import pytest
import torch

import manualgrad as mg
from manualgrad import dispatch
from manualgrad.ops.conv_relu_pool import conv2d_relu_max_pool2d
from manualgrad.ops.conv_relu_pool_geometry import ConvReLUPoolGeometry
from manualgrad.ops.max_pool2d_geometry import make_max_pool2d_geometry
from manualgrad.ops.relu_pool import relu_pool_forward
from manualgrad.pool_index import AT_ZERO, INACTIVE


def composed(x, w, b, subgradient, **options):
    """The same operation, layer by layer."""
    return mg.max_pool2d(mg.relu(mg.conv2d(x, w, b, **options), subgradient=subgradient))


def fused_and_composed(x, w, b, subgradient, **options):
    """Output and gradients of the fused Function, and of the three operations."""
    results = []
    for function in (conv2d_relu_max_pool2d, composed):
        leaves = [tensor.detach().requires_grad_() for tensor in (x, w, b)]
        output = function(*leaves, subgradient=subgradient, **options)
        upstream = torch.arange(1.0, output.numel() + 1, dtype=x.dtype, device=x.device).reshape(output.shape)
        results.append([output.detach(), *torch.autograd.grad(output, leaves, upstream)])
    return results


@pytest.mark.parametrize("subgradient", [0, 0.5, 1])
@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (3, 2, 7, 9), (1, 1, 5, 5), (0, 2, 6, 6)], ids=str)
@pytest.mark.parametrize("options", [{}, {"stride": (1, 2)}, {"padding": 1}, {"padding": "same"}], ids=str)
def test_whole_numbers_agree_bit_for_bit(shape, subgradient, options, device):
    x = torch.randint(-1, 2, shape, device=device).double()  # with many ties and exact zeros
    w = torch.randint(-1, 2, (3, shape[1], 2, 3), device=device).double()
    b = torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64, device=device)
    for ours, expected in zip(*fused_and_composed(x, w, b, subgradient, **options), strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("window", torch.cartesian_prod(*[torch.tensor([-1.0, -0.0, 0.0, 2.0, torch.nan])] * 4))
def test_every_window_of_signs_zeros_and_nan(window):
    """The 5⁴ windows of −, −0, 0, + and NaN. With a 1×1 kernel of value 1 the input is z itself."""
    x = window.view(1, 1, 2, 2)
    one, zero = torch.ones(1, 1, 1, 1), torch.tensor([-0.0])
    (ours, *our_gradients), (expected, *expected_gradients) = fused_and_composed(x, one, zero, 0.5)
    assert torch.equal(ours, expected) or (ours.isnan().all() and expected.isnan().all())
    assert torch.equal(our_gradients[0], expected_gradients[0]), "δ must go to the same place with the same factor"


def test_pooling_indices_contain_place_and_factor():
    z = torch.tensor([[1.0, 3], [3, 2]]), torch.tensor([[0.0, -1], [0, -1]]), torch.tensor([[-1.0, 0], [0, -1]])
    z = torch.stack(z).unsqueeze(-1)  # (B, H, W, 1)
    geometry = ConvReLUPoolGeometry(None, make_max_pool2d_geometry((1, 2, 2), 2, None, 0, 1, False), 0.5)
    pooled, pool_index = relu_pool_forward(z, geometry)
    assert pooled.flatten().tolist() == [3, 0, 0]
    assert pool_index.flatten().tolist() == [1, AT_ZERO, INACTIVE]


def test_the_network_is_the_same_fused_or_not():
    x, labels = torch.randn(3, 1, 28, 28, dtype=torch.float64), torch.tensor([0, 5, 9])
    x[:, :, :8] = 0  # a background, as in MNIST
    fused, composed_model = (mg.DocumentCNN(fused=fused, dtype=torch.float64) for fused in (True, False))
    assert fused.state_dict().keys() == composed_model.state_dict().keys()
    with torch.no_grad():
        fused.conv0.bias.zero_()
    composed_model.load_state_dict(fused.state_dict())
    costs = [model.cost(x, labels) for model in (fused, composed_model)]
    assert torch.equal(*costs)
    for cost in costs:
        cost.backward()
    for name, parameter in fused.named_parameters():
        assert torch.equal(parameter.grad, composed_model.get_parameter(name).grad), name


def test_chunks_of_a_batch_equal_the_whole_batch(monkeypatch):
    x, w, b = (torch.randn(shape, dtype=torch.float64) for shape in ((5, 2, 9, 8), (3, 2, 3, 3), (3,)))

    def output_and_gradients():
        leaves = [tensor.clone().requires_grad_() for tensor in (x, w, b)]
        y = conv2d_relu_max_pool2d(*leaves)
        return y, *torch.autograd.grad(y.square().sum(), leaves)

    unchunked = output_and_gradients()
    for numel in (1, 2 * 3 * 7 * 6):  # chunks of one image; of two images, and one image left over
        monkeypatch.setattr(dispatch, "CHUNK_NUMEL", numel)
        for chunked, expected in zip(output_and_gradients(), unchunked, strict=True):
            assert chunked.stride() == expected.stride()
            torch.testing.assert_close(chunked, expected, rtol=1e-12, atol=1e-12)  # some rounding errors of 1e-16


def test_less_is_saved_for_backward():
    def saved_bytes(function):
        saved = []
        x, w, b = torch.randn(8, 1, 28, 28), torch.randn(16, 1, 5, 5, requires_grad=True), torch.zeros(16)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            output = function(x, w, b, subgradient=0.5)
        assert output.requires_grad
        return sum({t.data_ptr(): t.untyped_storage().nbytes() for t in saved}.values())

    # x and 12×12×16 pooling indices per image; composed: x, z and the indices of the maxima
    assert saved_bytes(conv2d_relu_max_pool2d) == 8 * 28 * 28 * 4 + 8 * 12 * 12 * 16
    assert saved_bytes(conv2d_relu_max_pool2d) < saved_bytes(composed) / 6
