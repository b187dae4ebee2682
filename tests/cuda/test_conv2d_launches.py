"""Promise: a convolution on CUDA takes few launches, with the tiles that were measured, or says why it takes none."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from manualgrad.cuda import conv2d as host
from manualgrad.cuda.conv2d_tiles import gather_tile, wants_batch_last
from manualgrad.cuda.conv_relu import conv_relu_backward, conv_relu_forward, conv_relu_sign_forward
from manualgrad.cuda.launch import Launcher
from manualgrad.ops.conv2d_geometry import make_conv2d_geometry
from tests.cuda.conv2d_layers import LAYERS, operands


def test_unsupported_calls_name_the_reason() -> None:
    x, w, b, geometry = operands(LAYERS["one channel, two parts"], "cpu")
    assert host.unsupported_conv2d_forward(x.double(), w.double(), None, geometry) == "a tensor is float64"
    assert host.unsupported_conv2d_forward(x[..., 1:], w, b, geometry) == "the geometry is not that of the images"
    many = torch.empty(2**16, 1, 1, 1)
    groups = make_conv2d_geometry(torch.empty(1, 2**15, 1, 1), many, None, 1, 0, 1, 2**15, True)
    assert host.unsupported_conv2d_forward(torch.empty(1, 2**15, 1, 1), many, None, groups).startswith(
        "there are too"
    )
    steps = make_conv2d_geometry(x, w, b, 256, 0, 1, 1, True)
    assert host.unsupported_conv2d_grad_input(x[..., :1, :1], w, steps) == "the stride is too large"


def test_tiles_are_those_that_were_measured() -> None:
    many, few = 32 * 56 * 56, 32 * 7 * 7
    assert gather_tile("3xtf32", few, 512, 512 * 9, 132).parts == 3
    assert gather_tile("3xtf32", many, 64, 64 * 9, 132).parts == 1
    assert gather_tile("tf32", few, 512, 512 * 9, 132).parts == 2
    assert gather_tile("tf32", 32 * 14 * 14, 256, 256 * 9, 132).parts == 1
    assert gather_tile("half", many, 128, 64 * 9, 132).rows == 128
    assert gather_tile("half", few, 512, 512 * 9, 132).rows == 64
    assert gather_tile("half", many, 16, 75, 132).columns == 16
    assert wants_batch_last("3xtf32", 9, 3, 9)
    assert not wants_batch_last("3xtf32", 8, 64, 9)
    assert not wants_batch_last("half", 64, 64, 9)


class CountingLauncher(Launcher):
    """Counts launches and runs nothing."""

    count = 0

    def __call__(self, *args: Any, **constants: Any) -> None:
        self.count += 1


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_takes_at_most_three_launches_forward_and_five_backward(dtype, channels_last) -> None:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    for channels, size, out_channels, kernel, stride in (
        (3, 224, 64, 7, 2), (64, 56, 64, 3, 1), (64, 56, 128, 3, 2), (128, 28, 128, 3, 1), (256, 14, 512, 3, 2),
        (512, 7, 512, 3, 1), (64, 7, 512, 3, 1), (512, 7, 64, 3, 1), (256, 14, 512, 1, 2), (1, 28, 16, 5, 1),
    ):  # fmt: skip
        x = torch.empty(32, channels, size, size, dtype=dtype, memory_format=memory_format)
        w = torch.empty(out_channels, channels, kernel, kernel, dtype=dtype, memory_format=memory_format)
        geometry = make_conv2d_geometry(x, w, None, stride, kernel // 2, 1, 1, False, channels_last)
        forward, backward = CountingLauncher(), CountingLauncher()
        g = host.conv2d_forward(forward, x, w, None, geometry)
        host.conv2d_grad_input(backward, g, w, geometry)
        host.conv2d_grad_weight_and_bias(backward, g, x, geometry)
        assert forward.count <= 3, w.shape
        assert backward.count <= 5, w.shape
        with_relu, with_relu_backward = CountingLauncher(), CountingLauncher()
        r = conv_relu_forward(with_relu, x, w, None, geometry)
        conv_relu_backward(with_relu_backward, g, r, x, w, (True, True, True), geometry)
        assert with_relu.count == forward.count, w.shape
        assert with_relu_backward.count <= backward.count, w.shape
        with_sign, with_sign_backward = CountingLauncher(), CountingLauncher()
        _, sign = conv_relu_sign_forward(with_sign, x, w, None, geometry)
        conv_relu_backward(with_sign_backward, g, sign, x, w, (True, True, True), geometry, 0.5)
        assert with_sign.count == forward.count, w.shape
        assert with_sign_backward.count == with_relu_backward.count, w.shape
