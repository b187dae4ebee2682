"""Promise: what takes more programs than a launch may have is computed another way. The interpreter has no limit."""

from __future__ import annotations

import pytest
import torch

from manualgrad.cuda.conv_relu_pool import unsupported_conv_relu_pool_forward
from manualgrad.cuda.cross_entropy import unsupported_cross_entropy_from_labels
from manualgrad.network.cuda_plan_builder import CUDAPlanBuilder
from manualgrad.network.device import Unsupported
from manualgrad.network.layers import Conv, Dense, Flatten, NetworkSpec
from manualgrad.ops.conv_relu_pool_geometry import make_conv_relu_pool_geometry


def network(height: int, channels: int, *features: int) -> NetworkSpec:
    """A convolution of images of ``height`` by 512 pixels, and dense layers, with ReLU between all of them."""
    conv = Conv(channels, 1, (1, 1), (1, 1), (0, 0), (1, 1), 1, "zeros", True, 0.5)
    sizes = [height * 512 * channels, *features]
    dense = [Dense(n, before, None if n == features[-1] else 0.5) for before, n in zip(sizes, features, strict=False)]
    return NetworkSpec((1, height, 512), (conv, Flatten(False), *dense))


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (network(512, 8, 10), "a launch of dense_grad_input, of 1 x 65536 programs"),
        (network(512, 4, 128, 10), "a launch of head, of 1 x 65536 programs"),
        (network(511, 8, 2000, 10), r"32-bit offsets, too few for 4 images \(w2\)"),
    ],
    ids=["dense", "head", "offsets in a weight"],
)
def test_a_network_of_larger_layers_has_no_plan(spec, reason) -> None:
    with pytest.raises(Unsupported, match=reason):
        CUDAPlanBuilder(spec, 4)


def test_the_largest_layers_have_one() -> None:
    assert {call.programs for call in CUDAPlanBuilder(network(511, 8, 10), 4).step_calls()} >= {(1, 65408)}


def test_operations_name_the_reason() -> None:
    z, labels = torch.empty(1, 1, 1).expand(1, 2**22, 2), torch.zeros(1, 2, dtype=torch.int64)
    assert unsupported_cross_entropy_from_labels(z, labels, None, -100, "mean", 0.0) == "there are too many classes"
    x, w = torch.empty(1, 1, 2, 2), torch.empty(1, 1, 1, 1).expand(2**20, 1, 1, 1)
    geometry = make_conv_relu_pool_geometry(x, w, None, 1, 0, True, 0.5)
    assert unsupported_conv_relu_pool_forward(x, w, None, geometry) == "there are too many channels"
