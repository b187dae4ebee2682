"""Promise: a convolution of one pixel by matrix products equals the formulas, for any stride, layout and size."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from manualgrad import conv2d, kernels
from manualgrad.cpu import pointwise, team
from manualgrad.dispatch import by_kernel
from manualgrad.ops import conv2d as formulas
from manualgrad.ops.conv2d_geometry import make_conv2d_geometry

needs_avx2 = pytest.mark.skipif(kernels.available().instructions is None, reason=str(kernels.available()))
pytestmark = [needs_avx2, pytest.mark.usefixtures("avx2")]
NAMES = ("conv2d_forward_nchw", "conv2d_grad_input_nchw", "conv2d_grad_weight_oihw")


@pytest.fixture
def avx2(restore_kernels):
    kernels.choose("avx2")


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Dimensions of the left factor of each matrix product; all convolutions of one pixel become products."""
    monkeypatch.setattr(
        pointwise, "_is_faster", lambda geometry, *_: geometry.groups == 1 and not any(geometry.windows.padding)
    )
    dims: list[int] = []
    product = pointwise._product
    monkeypatch.setattr(pointwise, "_product", lambda c, a, b, out: dims.append(a.dim()) or product(c, a, b, out))
    return dims


def numbers(shape: tuple[int, ...], whole: bool, channels_last: bool) -> Tensor:
    x = torch.randint(-3, 4, shape).float() if whole else torch.randn(shape)
    return x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


sizes = st.tuples(st.integers(0, 3), st.sampled_from([1, 2, 3, 17]), st.integers(1, 11), st.integers(1, 11))


@given(
    sizes, st.sampled_from([1, 3, 8, 19]), st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(*[st.booleans()] * 6), st.integers(0, 99),
)  # fmt: skip
@example((2, 3, 9, 9), 4, (1, 1), (False, False, True, False, False, False), 0)  # one product for each image
@example((2, 3, 9, 9), 4, (1, 1), (False, True, True, True, True, True), 0)  # one product for all
@example((2, 3, 19, 17), 4, (2, 2), (False,) * 6, 0)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_products_equal_formulas(products, x_shape, out_channels, stride, choices, seed):
    flip, channels_last, has_bias, x_channels_last, w_channels_last, g_channels_last = choices
    torch.manual_seed(seed)
    w_shape = out_channels, x_shape[1], 1, 1
    x, w = numbers(x_shape, True, x_channels_last), numbers(w_shape, True, w_channels_last)
    b = numbers((out_channels,), True, False) if has_bias else None
    geometry = make_conv2d_geometry(x, w, b, stride, 0, 1, 1, flip, channels_last)
    products.clear()
    size = geometry.windows.output_size(*geometry.input_size)
    g = numbers((x_shape[0], out_channels, *size), True, g_channels_last)
    for name, arguments in zip(NAMES, ((x, w, b), (g, w), (g, x)), strict=True):
        result, expected = (
            by_kernel(name, *arguments, geometry),
            getattr(formulas, name).__wrapped__(*arguments, geometry),
        )
        assert torch.equal(result, expected), name
        if name != NAMES[2]:  # a parameter's gradient gets the parameter's strides from autograd
            assert result.stride() == expected.stride() or not result.numel(), name
    assert len(products) >= 2


@pytest.mark.parametrize("channels_last", [True, False])
def test_images_in_either_format_are_not_copied(products, channels_last):
    x, w, g = (numbers(s, False, channels_last) for s in ((2, 5, 8, 9), (7, 5, 1, 1), (2, 7, 8, 9)))
    geometry = make_conv2d_geometry(x, w, None, 1, 0, 1, 1, False, channels_last)
    for name, arguments in zip(NAMES[:2], ((x, w, None), (g, w)), strict=True):
        assert by_kernel(name, *arguments, geometry) is not None
    assert products == ([2, 2] if channels_last else [3, 3])


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("x_shape, out_channels", [((4, 300, 7, 9), 64), ((2, 16, 40, 41), 70), ((6, 700, 2, 2), 30)])
def test_error_is_at_most_twice_natives_and_2_ulp(products, x_shape, out_channels, channels_last):
    x, w = numbers(x_shape, False, channels_last), torch.randn(out_channels, x_shape[1], 1, 1)
    b, g = torch.randn(out_channels), numbers((x_shape[0], out_channels, *x_shape[2:]), False, channels_last)

    def results(function, *tensors: Tensor) -> list[Tensor]:
        x, w, b = (t.clone().requires_grad_() for t in tensors[:3])
        out = function(x, w, b)
        return [out.detach(), *torch.autograd.grad(out, (x, w), tensors[3])]

    ours = results(lambda *t: conv2d(*t, flip_kernel=False, channels_last=channels_last), x, w, b, g)
    native, exact = results(F.conv2d, x, w, b, g), results(F.conv2d, *(t.double() for t in (x, w, b, g)))
    for our_result, native_result, exact_result in zip(ours, native, exact, strict=True):
        largest = exact_result.abs().max().float()
        ulp = (torch.nextafter(largest, largest + 1) - largest).item()
        error, native_error = ((t.double() - exact_result).abs().max().item() for t in (our_result, native_result))
        assert error <= 2 * native_error + 2 * ulp
    assert len(products) >= 2


def test_autocast_does_not_change_a_product(products):
    """As in a backward pass that runs inside of autocast, of a forward pass outside of it."""
    x, w = torch.randn(2, 5, 9, 9), torch.randn(7, 5, 1, 1)
    geometry = make_conv2d_geometry(x, w, None, 1, 0, 1, 1, False, False)
    expected = by_kernel(NAMES[0], x, w, None, geometry)
    with torch.autocast("cpu", torch.bfloat16):
        result = by_kernel(NAMES[0], x, w, None, geometry)
    assert torch.equal(result, expected)
    assert products == [3, 3]


def test_a_weight_that_is_not_finite(products):
    x, w, g = torch.randn(2, 3, 5, 5), torch.randn(4, 3, 1, 1), torch.randn(2, 4, 3, 3)
    w[1, 2], g[0, 1, 0, 0] = torch.inf, 0.0
    geometry = make_conv2d_geometry(x, w, None, 2, 0, 1, 1, False, False)
    result, expected = (
        by_kernel(NAMES[1], g, w, geometry),
        formulas.conv2d_grad_input_nchw.__wrapped__(g, w, geometry),
    )
    torch.testing.assert_close(result, expected, equal_nan=True)
    assert result[0, 2, 0, 0].isnan()
    assert not result[..., 1].any(), "no window has these pixels"
    assert products == [2]


def test_other_convolutions_are_not_products(products):
    x = torch.randn(2, 4, 9, 9)
    for shape, options in [((6, 4, 1, 1), {"padding": 1}), ((4, 2, 1, 1), {"groups": 2}), ((6, 4, 1, 3), {})]:
        conv2d(x, torch.randn(shape), **options)
    assert not products


def test_a_large_weight_or_contiguous_images_are_multiplied_without_packing(monkeypatch):
    calls = []
    monkeypatch.setattr(pointwise, "_product", lambda *operands: calls.append(operands))
    for x, w in [((1, 60, 2, 2), (20, 60, 1, 1)), ((1, 4, 8, 8), (3, 4, 1, 1))]:
        conv2d(torch.randn(x), torch.randn(w), channels_last=False)
    assert len(calls) == 2
    x, w = torch.randn(1, 4, 8, 8).to(memory_format=torch.channels_last), torch.randn(3, 4, 1, 1)
    conv2d(x, w)
    conv2d(torch.randn(1, 4, 7, 8), w, channels_last=False)
    monkeypatch.setattr(team, "_forked", True)  # where PyTorch's products would wait for threads that do not exist
    conv2d(torch.randn(1, 4, 8, 8), w, channels_last=False)
    assert len(calls) == 2


@pytest.mark.skipif(kernels.available().instructions != "avx512", reason="AVX-512 is not in use here")
def test_with_avx512_a_weight_of_many_more_entries_than_windows_or_images_is_multiplied(monkeypatch):
    kernels.choose("avx512")
    calls = []
    monkeypatch.setattr(pointwise, "_product", lambda *operands: calls.append(operands))
    conv2d(torch.randn(1, 100, 1, 1), torch.randn(50, 100, 1, 1))
    assert len(calls) == 1
    conv2d(torch.randn(1, 99, 1, 1), torch.randn(50, 99, 1, 1))
    conv2d(torch.randn(1, 4, 8, 8), torch.randn(3, 4, 1, 1), channels_last=False)
    assert len(calls) == 1
    conv2d(torch.randn(1, 256, 8, 16), torch.randn(256, 256, 1, 1))  # as many entries as both images have numbers
    assert len(calls) == 2
    conv2d(torch.randn(1, 255, 8, 16), torch.randn(256, 255, 1, 1))
    conv2d(torch.randn(1, 256, 8, 17), torch.randn(256, 256, 1, 1))
    assert len(calls) == 2


def test_relu_follows_a_product(products):
    x, w = numbers((2, 5, 8, 9), True, False), numbers((7, 5, 1, 1), True, False)
    x[0, 0, 0, 0] = torch.nan
    geometry = make_conv2d_geometry(x, w, None, 1, 0, 1, 1, False, False)
    result, expected = by_kernel("conv_relu_forward", x, w, None, geometry), F.relu(F.conv2d(x, w))
    torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)
    assert products == [3]
