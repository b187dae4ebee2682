"""Promise: kernels address every number of a tensor of more than 2^31, which nothing here allocates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from manualgrad.cuda import conv2d, conv2d_depthwise, conv2d_weight_gradient, conv_relu, cross_entropy, relu, softmax
from manualgrad.cuda import max_pool2d as pool
from manualgrad.cuda.conv_relu_pool import conv_relu_pool_forward
from manualgrad.ops.conv2d_geometry import make_conv2d_geometry
from manualgrad.ops.conv_relu_pool_geometry import make_conv_relu_pool_geometry
from manualgrad.ops.max_pool2d_geometry import make_max_pool2d_geometry
from tests.cuda.addresses import AddressLauncher

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="it takes Triton's interpreter"),
    pytest.mark.usefixtures("kernel_device"),
]
FORMATS = {True: torch.channels_last, False: torch.contiguous_format}


@pytest.fixture
def launcher(monkeypatch) -> AddressLauncher:
    """A launcher for a GPU of many multiprocessors: each program has a short sum."""
    monkeypatch.setattr(conv2d_weight_gradient, "num_multiprocessors", lambda device: 2**17)
    monkeypatch.setattr(conv2d_depthwise, "num_multiprocessors", lambda device: 2**21)
    return AddressLauncher()


def meta(*shape: int, dtype: torch.dtype = torch.float32, channels_last: bool = False) -> Tensor:
    memory_format = FORMATS[channels_last] if len(shape) == 4 else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device="meta", memory_format=memory_format)


# x, w, stride, groups, channels_last; every z has more than 2^31 numbers, or positions
LAYERS = {
    "channels on blocks": ((2**14, 32, 64, 64), (32, 32, 1, 1), 1, 1, True),
    "few channels": ((2**18, 3, 64, 64), (16, 3, 3, 3), 1, 1, True),
    "contiguous, copied": ((2**14, 32, 64, 64), (32, 32, 1, 1), 1, 1, False),
    "stride 2": ((2**14, 32, 64, 64), (144, 32, 2, 2), 2, 1, True),
    "few large images": ((2, 32, 2**13, 2**12), (32, 32, 1, 1), 1, 1, True),
    "depthwise": ((2**15, 64, 32, 32), (64, 1, 1, 1), 1, 64, True),
    "depthwise, contiguous": ((2**15, 64, 32, 32), (64, 1, 1, 1), 1, 64, False),
}


FAST = [("few channels", torch.bfloat16), ("stride 2", torch.float32), ("depthwise", torch.float32)]
CASES = [(name, dtype) for name in LAYERS for dtype in (torch.float32, torch.bfloat16)]


@pytest.mark.parametrize(
    ("name", "dtype"), [pytest.param(*case, marks=() if case in FAST else pytest.mark.slow) for case in CASES]
)
def test_convolution(launcher, name, dtype) -> None:
    x_shape, w_shape, stride, groups, channels_last = LAYERS[name]
    x, w = meta(*x_shape, dtype=dtype, channels_last=channels_last), meta(*w_shape, dtype=dtype)
    geometry = make_conv2d_geometry(x, w, None, stride, 0, 1, groups, True, channels_last)
    size = geometry.windows.output_size(*geometry.input_size)
    g = meta(x_shape[0], w_shape[0], *size, dtype=dtype, channels_last=channels_last)
    conv2d.conv2d_forward(launcher, x, w, None, geometry)
    conv2d.conv2d_grad_input(launcher, g, w, geometry)
    if groups > 1:
        conv2d.conv2d_grad_weight(launcher, g, x, geometry)
    else:
        conv2d.conv2d_grad_weight_and_bias(launcher, g, x, geometry)
    products = [n for n in launcher.names if not n.startswith(("conv2d_pack", "conv2d_sum"))]
    assert min(launcher.largest[name] for name in products) > 2**31 - 2**20, "the last numbers were read or written"


def test_copies_that_read_the_relu(launcher) -> None:
    x_shape, w_shape = LAYERS["channels on blocks"][:2]
    x, w = meta(*x_shape, channels_last=True), meta(*w_shape)
    g, r = meta(*x_shape), meta(*x_shape)
    geometry = make_conv2d_geometry(x, w, None, 1, 0, 1, 1, True, True)
    for needs_grad in ((True, False, False), (False, True, True)):
        conv_relu.conv_relu_backward(launcher, g, r, x, w, needs_grad, geometry)
    assert launcher.names == [
        "conv2d_pack",
        "conv2d_gather_gemm",
        "conv2d_batch_last",
        "conv2d_grad_weight_batch_last",
    ]
    assert min(launcher.largest[name] for name in ("conv2d_pack", "conv2d_batch_last")) == g.numel() - 1


@pytest.mark.parametrize("groups", [pytest.param(1, marks=pytest.mark.slow), 64])
def test_more_positions_than_numbers(launcher, groups) -> None:
    """Expanded images and gradients of a few numbers, with 2^32 positions."""
    x, g = (meta(1, 64, 64, 64, dtype=torch.bfloat16, channels_last=True).expand(2**20, -1, -1, -1) for _ in range(2))
    w = meta(64, 64 // groups, 1, 1, dtype=torch.bfloat16)
    geometry = make_conv2d_geometry(x, w, None, 1, 0, 1, groups, True, True)
    conv2d.conv2d_grad_weight(launcher, g, x, geometry)


@pytest.mark.parametrize("channels_last", [pytest.param(True, marks=pytest.mark.slow), False])
def test_pooling(launcher, channels_last) -> None:
    x = meta(2**15 + 1, 64, 32, 32, channels_last=channels_last).permute(0, 2, 3, 1)
    geometry = make_max_pool2d_geometry((2**15 + 1, 64, 32, 32), 1, 1, 0, 1, False, channels_last)
    out, index = pool.max_pool2d_forward(launcher, x, geometry)
    pool.max_pool2d_backward(launcher, out.permute(0, 3, 1, 2), index.permute(0, 3, 1, 2), geometry)
    assert min(launcher.largest.values()) == x.numel() - 1


def test_one_launch_of_convolution_relu_and_pooling(launcher) -> None:
    x, w = meta(2**22, 1, 17, 17), meta(8, 1, 2, 2)
    conv_relu_pool_forward(launcher, x, w, None, make_conv_relu_pool_geometry(x, w, None, 1, 0, True, 0.0))
    assert launcher.largest["conv_relu_pool_forward"] == 2**31 - 1


def test_relu(launcher) -> None:
    z = meta(2**31 + 5)
    relu.relu_backward(launcher, z, z, 0.5)
    assert launcher.largest["relu_backward"] == 2**31 + 4


@pytest.mark.parametrize(
    "shape", [(2**30 + 1, 2), *(pytest.param(s, marks=pytest.mark.slow) for s in ((2**26 + 1, 32), (2, 5, 2**28)))]
)
def test_rows(launcher, shape: Any) -> None:
    """Rows of few classes: three numbers of each are more than 2^31 too."""
    z = meta(*shape)
    s = softmax.softmax_forward(launcher, z, 1)
    softmax.softmax_backward(launcher, s, z, 1)
    labels = meta(shape[0], *shape[2:], dtype=torch.int64)
    loss, _, stats, factor = cross_entropy.cross_entropy_from_labels(launcher, z, labels, None, -100, "none", 0.1)
    backward = cross_entropy.cross_entropy_from_labels_backward
    backward(launcher, loss, z, labels, None, stats, -100, 0.1, factor)
    if z.dim() == 2:
        cross_entropy.cross_entropy_backward(
            launcher, cross_entropy.cross_entropy_forward(launcher, z, z, False), z, z
        )
    assert min(launcher.largest.values()) == z.numel() - 1 or len(stats[0]) > 2**29
