"""Promise: convolution's kernels for CUDA read tensors of any strides, and write gradients of no images."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from manualgrad.ops.conv2d import (
    conv2d_forward_nchw,
    conv2d_grad_input_nchw,
    conv2d_grad_weight_and_bias,
    conv2d_grad_weight_oihw,
)
from tests.cuda.conv2d_layers import BATCH_LAST, DEPTHWISE, LAYERS, SUM_W, Layer, assert_near, formula, operands, tf32


def views(x: Tensor) -> dict[str, Tensor]:
    """Tensors like ``x`` whose numbers lie elsewhere: each strided, sliced or expanded."""
    return {
        "sliced": torch.cat([x, x], 1)[:, : x.shape[1]],
        "sliced, channels_last": torch.cat([x, x], 1).contiguous(memory_format=torch.channels_last)[:, : x.shape[1]],
        "rows apart": torch.cat([x, x], 3)[..., : x.shape[3]],
        "expanded batch": x[:1].expand_as(x),
        "expanded": x[:1, :1, :1, :1].expand_as(x),
        "transposed": x.transpose(2, 3).contiguous().transpose(2, 3),
    }


@pytest.mark.parametrize(
    ("view", "batch"),
    [
        ("rows apart", 2), ("expanded", 2), ("sliced", 9), ("expanded batch", 9),
        *(
            pytest.param(view, batch, marks=pytest.mark.slow)
            for view, batch in (
                ("sliced", 2), ("sliced, channels_last", 2), ("transposed", 2), ("expanded batch", 2), ("expanded", 9)
            )
        ),
    ],
)  # fmt: skip
def test_other_memory_orders(kernel_device, launches, view, batch) -> None:
    layer = Layer((batch, 6, 3, 3), (2, 6, 2, 2), ([], [], []), flip_kernel=False)
    x, w, b, geometry = operands(layer, kernel_device)
    g = torch.randn(batch, 2, 2, 2).to(kernel_device)
    x, w, g = views(x)[view], views(w)[view], views(g)[view]
    b = b[:1].expand(2)
    with tf32(False):
        for function, args in (
            (conv2d_forward_nchw, (x, w, b)), (conv2d_grad_input_nchw, (g, w)), (conv2d_grad_weight_oihw, (g, x))
        ):  # fmt: skip
            assert_near(function(*args, geometry), formula(function, *args, geometry), 6e-7)
    assert (BATCH_LAST in launches) == (batch > 8)


def test_depthwise_reads_views_in_place(kernel_device, launches) -> None:
    x, _, _, geometry = operands(LAYERS["depthwise"], kernel_device)
    g = torch.randn(3, 6, *geometry.windows.output_size(13, 14)).to(kernel_device)
    with tf32(False):
        for view in ("sliced", "rows apart", "expanded"):
            args = views(g)[view], views(x)[view]
            assert_near(
                conv2d_grad_weight_oihw(*args, geometry), formula(conv2d_grad_weight_oihw, *args, geometry), 6e-7
            )
    assert set(launches) == {DEPTHWISE[2], SUM_W}


@pytest.mark.parametrize("groups", [1, 4])
def test_batch_0(kernel_device, launches, groups) -> None:
    layer = Layer((0, 4, 3, 3), (4, 4 // groups, 2, 2), ([], [], []), groups=groups)
    x, w, b, geometry = operands(layer, kernel_device)
    assert conv2d_forward_nchw(x, w, b, geometry).shape == (0, 4, 2, 2)
    g = x.new_empty(0, 4, 2, 2)
    assert conv2d_grad_input_nchw(g, w, geometry).shape == x.shape
    for grad, parameter in zip(conv2d_grad_weight_and_bias(g, x, geometry), (w, b), strict=True):
        assert torch.equal(grad, torch.zeros_like(parameter))
    assert launches == []
