"""Promise: infinite and NaN numbers give what the formulas of convolution give, on CUDA too."""

from __future__ import annotations

import pytest
import torch

from manualgrad.ops.conv2d import conv2d_forward_nchw, conv2d_grad_input_nchw, conv2d_grad_weight_oihw
from tests.cuda.conv2d_layers import GEMM, LAYERS, PACK, Layer, formula, operands, tf32

NAN, INF = float("nan"), float("inf")
SPECIAL = {"infinity": INF, "NaN as GPUs make it": 0x7FFFFFFF, "its negative": 0xFFFFFFFF - 2**32}


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # of NumPy, in the interpreter
@pytest.mark.parametrize(
    ("special", "allowed"), [*((special, False) for special in SPECIAL), ("infinity", True), ("its negative", True)]
)
def test_numbers_that_are_not_finite(kernel_device, special, allowed) -> None:
    """An infinite number times the low part of another has a sign of its own: the small products must not count."""
    value = SPECIAL[special]
    if isinstance(value, int):
        value = torch.tensor(value, dtype=torch.int32).view(torch.float32)
    x, w, b, geometry = operands(Layer((1, 4, 4, 4), (2, 4, 1, 1), ([], [], [])), kernel_device)
    g = torch.randn(1, 2, 4, 4).to(kernel_device)
    x_special, w_special, g_special = x.clone(), w.clone(), g.clone()
    x_special[0, 1, 1, 2], w_special[1, 2], g_special[0, 1, 3, 3] = value, value, value
    calls = (
        (conv2d_forward_nchw, (x_special, w, b)),
        (conv2d_forward_nchw, (x, w_special, b)),
        (conv2d_grad_input_nchw, (g_special, w)),
        (conv2d_grad_input_nchw, (g, w_special)),
        (conv2d_grad_weight_oihw, (g_special, x)),
        (conv2d_grad_weight_oihw, (g, x_special)),
    )
    with tf32(allowed):
        for function, args in calls:
            actual, expected = function(*args, geometry), formula(function, *args, geometry)
            assert not expected.isfinite().all()
            torch.testing.assert_close(
                actual.double(), expected, rtol=2e-2, atol=2e-2, equal_nan=True
            )  # as in TF32, 100 times coarser than what the other tests allow: here only the special numbers count


@pytest.mark.parametrize(
    ("layer", "precision"),
    [
        (LAYERS["few channels, taps and channels on one axis"], "3xtf32"),
        (LAYERS["padding at the bottom and right only"], "tf32"),
        (Layer((1, 10, 2, 3), (3, 10, 1, 2), ([], [PACK, GEMM], [])), "half"),
        (Layer((1, 4, 5, 6), (5, 4, 3, 3), ([], [], []), stride=(2, 1), padding=1, dilation=(1, 2)), "3xtf32"),
    ],
    ids=[
        "taps and channels on one axis",
        "padding at two sides",
        "more channels than are summed at a time",
        "strides and dilation",
    ],
)
def test_weights_that_are_not_finite_at_the_border(kernel_device, launches, layer, precision) -> None:
    """The input's gradient has no product with the padding around g, which would be 0 · w."""
    dtype = torch.float16 if precision == "half" else torch.float32
    x, w, _, geometry = operands(layer, kernel_device, dtype)
    w[1, 2, 0, 0], w[2, 1, -1, -1] = INF, NAN
    g = torch.randn(x.shape[0], w.shape[0], *geometry.windows.output_size(*geometry.input_size))
    g = g.to(kernel_device, dtype)
    with tf32(precision == "tf32"):
        actual = conv2d_grad_input_nchw(g, w, geometry)
    expected = formula(conv2d_grad_input_nchw, g, w, geometry)
    assert not expected.isfinite().all() and expected.isfinite().any()
    torch.testing.assert_close(actual.double(), expected, rtol=5e-3, atol=5e-3, equal_nan=True)
    assert launches == [PACK, GEMM]
