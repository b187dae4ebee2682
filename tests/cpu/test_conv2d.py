"""Promise: the kernels of a general convolution equal their formulas, for any windows, groups, layout and threads."""

from __future__ import annotations

from types import SimpleNamespace
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from manualgrad import DocumentCNN, kernels
from manualgrad.cpu import (
    conv2d_calls,
    conv2d_grids,
    conv2d_programs,
    conv2d_regions,
    image_formats,
    instruction_set,
    jit,
    kernel_groups,
)
from manualgrad.dispatch import by_kernel
from manualgrad.ops import conv2d as formulas
from manualgrad.ops.conv2d_geometry import Conv2dGeometry, make_conv2d_geometry

needs_kernels = pytest.mark.skipif(kernels.available().instructions is None, reason=str(kernels.available()))
pytestmark = [needs_kernels, pytest.mark.usefixtures("restore_kernels")]

FORMULAS = {
    name: getattr(formulas, name).__wrapped__
    for name in ("conv2d_forward_nchw", "conv2d_grad_input_nchw", "conv2d_grad_weight_oihw")
}


@st.composite
def convolutions(draw) -> tuple[tuple[int, ...], tuple[int, ...], dict]:
    """Shapes of x and w, and options; a group has too many channels for the kernels of small groups."""
    pairs = [
        st.tuples(st.integers(low, high), st.integers(low, high)) for low, high in ((1, 5), (1, 3), (1, 2), (0, 3))
    ]
    kernel, stride, dilation, padding = (draw(pair) for pair in pairs)
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    in_channels = draw(st.sampled_from([1, 2, 3, 5, 6, 8, 17, 40] if groups == 1 else [17, 24]))
    out_channels = draw(st.sampled_from([1, 3, 8, 9, 16, 17, 40]))
    span = [d * (k - 1) + 1 - 2 * p for k, d, p in zip(kernel, dilation, padding, strict=True)]
    size = [max(1, n) + draw(st.integers(0, 9)) for n in span]
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return (
        (draw(st.integers(0, 4)), in_channels * groups, *size),
        (out_channels * groups, in_channels, *kernel),
        options,
    )


def whole_numbers(*shape: int, channels_last: bool = False) -> Tensor:
    x = torch.randint(-3, 4, shape).float()
    return x.to(memory_format=torch.channels_last) if channels_last else x


def assert_kernels_equal_formulas(
    x: Tensor, w: Tensor, b: Tensor | None, geometry: Conv2dGeometry, g: Tensor
) -> None:
    """Compare bit for bit, strides of results that are not empty too; whole numbers make every sum exact."""
    for name, arguments in zip(FORMULAS, ((x, w, b), (g, w), (g, x)), strict=True):
        result, expected = by_kernel(name, *arguments, geometry), FORMULAS[name](*arguments, geometry)
        assert result is not None, name
        assert torch.equal(result, expected), name
        if name != "conv2d_grad_weight_oihw":  # a parameter's gradient gets the parameter's strides from autograd
            assert result.stride() == expected.stride() or not result.numel(), name
    grad_x, grad_w, grad_b = by_kernel("conv2d_backward", g, x, w, b is not None, geometry)
    expected_x = FORMULAS["conv2d_grad_input_nchw"](g, w, geometry)
    expected_w = FORMULAS["conv2d_grad_weight_oihw"](g, x, geometry)
    assert torch.equal(grad_x, expected_x) and torch.equal(grad_w, expected_w)
    assert grad_x.stride() == expected_x.stride() or not grad_x.numel()
    assert grad_b is None if b is None else torch.equal(grad_b, g.sum((0, 2, 3)))


BLOCKS = ((2, 40, 9, 9), (20, 40, 4, 4), {"padding": 2})  # several blocks of taps
RUN_BLOCKS = ((1, 600, 2, 3), (17, 600, 1, 1), {})  # several blocks of a run
CHUNKS = ((3, 6, 20, 21), (9, 6, 3, 3), {"padding": 1})  # several chunks of windows
STRIPS = ((2, 70, 9, 9), (75, 70, 2, 2), {})  # several strips of transposed images
NO_PIXEL = ((2, 9, 1, 1), (9, 9, 1, 1), {"stride": 7, "padding": 9})  # all windows are outside the image
UNUSED_PIXELS = ((2, 8, 7, 8), (9, 8, 1, 1), {"stride": 2})  # no window has them


@given(
    convolutions(), st.tuples(*[st.booleans()] * 6), st.integers(1, 4), st.sampled_from(sorted(jit.LANES)),
    st.integers(0, 99),
)  # fmt: skip
@example(BLOCKS, (True,) * 6, 1, "avx2", 0)
@example(RUN_BLOCKS, (True,) * 6, 4, "avx2", 0)
@example(CHUNKS, (True,) * 6, 1, "avx2", 0)
@example(STRIPS, (False,) * 6, 2, "avx2", 0)
@example(NO_PIXEL, (True,) * 6, 2, "avx2", 0)
@example(UNUSED_PIXELS, (False,) * 6, 3, "avx2", 0)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_kernels_equal_formulas(monkeypatch, convolution, choices, threads, instructions, seed):
    x_shape, w_shape, options = convolution
    flip, channels_last, has_bias, x_channels_last, w_channels_last, g_channels_last = choices
    kernels.choose(instructions if instructions in jit.instruction_sets() else "auto")
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    monkeypatch.setattr(conv2d_regions, "MULTIPLICATIONS_PER_THREAD", 1 << 10)  # so that small sizes use threads
    monkeypatch.setattr(conv2d_grids, "CHUNK_BYTES", dict.fromkeys(jit.LANES.values(), 1 << 10))
    monkeypatch.setattr(conv2d_grids, "MAX_BLOCK_IMAGES", 2)
    monkeypatch.setattr(conv2d_calls, "BLOCK_PIECE", 72)
    x, w = (
        whole_numbers(*x_shape, channels_last=x_channels_last),
        whole_numbers(*w_shape, channels_last=w_channels_last),
    )
    b = whole_numbers(w_shape[0]) if has_bias else None
    arguments = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1} | options
    geometry = make_conv2d_geometry(x, w, b, **arguments, flip_kernel=flip, channels_last=channels_last)
    size = geometry.windows.output_size(*geometry.input_size)
    g = whole_numbers(x_shape[0], w_shape[0], *size, channels_last=g_channels_last)
    assert_kernels_equal_formulas(x, w, b, geometry, g)


def test_constants_are_those_of_the_kernels():
    from manualgrad.cpu.kernels import conv2d_tile, conv2d_windows, transpose  # they need LLVM

    assert conv2d_grids.TILE_ROWS == conv2d_tile.TILE_ROWS
    assert conv2d_grids.ENTRY_BYTES == conv2d_windows.ENTRY_BYTES
    assert len(get_args(conv2d_grids.Tap)) == conv2d_windows.TAP_WORDS
    for lanes, vectors in conv2d_calls.PANEL_VECTORS.items():
        assert conv2d_tile.panel_vectors(SimpleNamespace(lanes=lanes)) == vectors
    assert (image_formats.BLOCK, image_formats.STRIP) == (transpose.BLOCK, transpose.STRIP)


SHAPES = {  # x, w, stride, padding
    "3x3": ((2, 64, 14, 14), (64, 64, 3, 3), 1, 1),
    "1x1": ((4, 256, 7, 7), (64, 256, 1, 1), 1, 0),
    "first layer": ((2, 3, 40, 40), (32, 3, 7, 7), 2, 3),
    "stride 2": ((2, 32, 28, 28), (48, 32, 3, 3), 2, 1),
    "many windows": ((4, 3, 112, 112), (20, 3, 3, 3), 1, 1),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_error_is_at_most_twice_natives_and_2_ulp(shape):
    """Against float64, for each of the four results and in each of three draws."""
    x_shape, w_shape, stride, padding = shape
    for _ in range(3):
        x, w = (torch.randn(s).to(memory_format=torch.channels_last) for s in (x_shape, w_shape))
        b = torch.randn(w_shape[0])
        geometry = make_conv2d_geometry(x, w, b, stride, padding, 1, 1, False)
        g = torch.randn_like(F.conv2d(x, w, b, stride, padding))
        native = native_results(x, w, b, g, stride, padding)
        exact = native_results(*(t.double() for t in (x, w, b, g)), stride, padding)
        ours = [by_kernel(n, *a, geometry) for n, a in zip(FORMULAS, ((x, w, b), (g, w), (g, x)), strict=True)]
        ours.append(by_kernel("conv2d_grad_weight_and_bias", g, x, geometry)[1])
        for our_result, native_result, exact_result in zip(ours, native, exact, strict=True):
            largest = exact_result.abs().max().float()
            ulp = (torch.nextafter(largest, largest + 1) - largest).item()
            errors = [(t.double() - exact_result).abs().max().item() for t in (our_result, native_result)]
            assert errors[0] <= 2 * errors[1] + 2 * ulp


def native_results(x: Tensor, w: Tensor, b: Tensor, g: Tensor, stride: int, padding: int) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in (x, w, b)]
    out = F.conv2d(*leaves, stride, padding)
    return [out.detach(), *torch.autograd.grad(out, leaves, g)]


def test_results_do_not_depend_on_the_number_of_threads():
    """More threads than rows of windows too; each sum is computed by one thread, in a fixed order."""
    x, w, b = torch.randn(2, 100, 3, 5), torch.randn(70, 100, 3, 3), torch.randn(70)
    geometry, results = make_conv2d_geometry(x, w, b, 1, 1, 1, 1, True), []
    g = torch.randn(2, 70, 3, 5)
    for threads in (1, 2, 3, 16):
        torch.set_num_threads(threads)
        calls = zip(FORMULAS, ((x, w, b), (g, w), (g, x)), strict=True)
        results.append([by_kernel(name, *arguments, geometry) for name, arguments in calls])
        results[-1] += by_kernel("conv2d_grad_weight_and_bias", g, x, geometry)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_views_and_negated_tensors():
    x = torch.view_as_complex(whole_numbers(2, 5, 9, 9, 2)).conj().imag[:, 1:, ::2, 1:]  # with a negative bit
    w = torch.view_as_complex(whole_numbers(6, 4, 3, 3, 2)).conj().imag
    assert x.is_neg()
    assert w.is_neg()
    geometry = make_conv2d_geometry(x, w, None, 1, 1, 1, 1, True)
    g = torch.ones(()).expand(2, 6, 5, 8)  # as the gradient of a sum is
    assert_kernels_equal_formulas(x, w, whole_numbers(12)[::2], geometry, g)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_the_formula_computes_what_the_kernels_decline(value):
    """With a weight that is not finite, kernels would multiply it with zeros for some windows at the border only."""
    x, w, g = torch.randn(1, 2, 6, 5), torch.randn(3, 2, 3, 3), torch.randn(1, 3, 6, 5)
    geometry = make_conv2d_geometry(x, w, None, 1, 1, 1, 1, False)
    w[-1, -1, -1, -1] = value
    assert by_kernel("conv2d_forward_nchw", x, w, None, geometry) is None
    assert by_kernel("conv_relu_forward", x, w, None, geometry) is None
    assert by_kernel("conv2d_grad_input_nchw", g, w, geometry) is None
    assert by_kernel("conv2d_backward", g, x, w, False, geometry) is None
    grad_x = formulas.conv2d_grad_input_nchw(g, w, geometry)
    assert grad_x[..., 0].isfinite().all(), "no window has this weight at the first column"
    inside = make_conv2d_geometry(x, w, None, 1, 0, 1, 1, False)  # no window is at a border
    result = by_kernel("conv2d_forward_nchw", x, w, None, inside)
    torch.testing.assert_close(result, F.conv2d(x, w), equal_nan=True)


@pytest.mark.parametrize(
    "options", [{}, {"dilation": 2, "padding": 2}, {"padding": 5}], ids=["", "dilated", "beyond"]
)
@pytest.mark.parametrize("channels", [2, 20])
def test_infinite_gradients_give_what_the_formula_gives(channels, options):
    """The formula multiplies infinity with zeros outside the image, which the kernel can leave out: it declines then.
    With more padding than the kernel reaches, some gradients belong to no pixel of the image."""
    options = {"stride": 1, "padding": 1, "dilation": 1, "groups": 1} | options
    x, w = torch.randn(1, channels, 6, 5), torch.randn(3, channels, 3, 3)
    geometry = make_conv2d_geometry(x, w, None, **options, flip_kernel=False)
    g = torch.randn_like(F.conv2d(x, w, None, **options))
    x[0, 0, 0, 0] = g[0, 0, 0, 0] = torch.inf
    out = by_kernel("conv2d_forward_nchw", x, w, None, geometry)
    torch.testing.assert_close(out, F.conv2d(x, w, None, **options), equal_nan=True)
    expected = FORMULAS["conv2d_grad_weight_oihw"](g, x, geometry)
    torch.testing.assert_close(formulas.conv2d_grad_weight_oihw(g, x, geometry), expected, equal_nan=True)
    _, grad_w, _ = formulas.conv2d_backward(g, x, w, (True, True, False), geometry)
    torch.testing.assert_close(grad_w, expected, equal_nan=True)
    leaves_out = options["padding"] < 5 and (channels == 20 or options["dilation"] == 2)
    assert (by_kernel("conv2d_grad_weight_oihw", g, x, geometry) is None) == leaves_out


def test_the_formula_computes_other_calls():
    x, w, b = torch.randn(1, 2, 6, 5), torch.randn(3, 2, 3, 3), torch.randn(3)
    geometry, g = make_conv2d_geometry(x, w, b, 1, 1, 1, 1, False), torch.randn(1, 3, 6, 5)
    truncated = torch.randn(1, 2, 6, 5)
    truncated.untyped_storage().resize_(8)
    for others in [
        (x.double(), w.double(), b.double()), (x[..., 1:], w, b), (x[:, :1], w, b), (x, w[..., 1:], b), (x, w, b[1:]),
        (truncated, w, b), (x.bfloat16(), w.bfloat16(), None),
    ]:  # fmt: skip
        assert by_kernel("conv2d_forward_nchw", *others, geometry) is None
    assert by_kernel("conv2d_grad_input_nchw", g[..., 1:], w, geometry) is None
    assert by_kernel("conv2d_grad_input_nchw", g.double(), w.double(), geometry) is None
    assert by_kernel("conv2d_grad_weight_oihw", torch.cat([g, g]), x, geometry) is None


def test_a_network_without_a_general_convolution_compiles_no_kernel_for_it(monkeypatch):
    loaded, load_module = [], jit.load_module
    monkeypatch.setattr(instruction_set, "load_module", lambda *names: loaded.append(names) or load_module(*names))
    conv2d_programs.forward_program.cache_clear()
    DocumentCNN()(torch.randn(2, 1, 28, 28)).sum().backward()
    assert not any(kernel_groups.CONV2D in names for names in loaded)
    x, w = torch.randn(1, 2, 6, 5), torch.randn(3, 2, 3, 3)
    formulas.conv2d_forward_nchw(x, w, None, make_conv2d_geometry(x, w, None, 1, 1, 1, 1, False))
    assert (kernels.available().instructions, kernel_groups.CONV2D) in loaded
