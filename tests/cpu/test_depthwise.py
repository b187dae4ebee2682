"""Promise: the kernels for few channels in a group equal the formulas, and round at most twice as much as native."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from manualgrad import conv2d, kernels
from manualgrad.cpu import instruction_set, jit, kernel_groups
from manualgrad.cpu.grouped_conv_runs import GROUP_SIZES
from manualgrad.dispatch import by_kernel
from manualgrad.ops import conv2d as formulas
from manualgrad.ops.conv2d_geometry import Conv2dGeometry, make_conv2d_geometry

pytestmark = pytest.mark.skipif(kernels.available().instructions is None, reason=str(kernels.available()))

SERVED = [size for size in GROUP_SIZES if size <= 2 * jit.LANES.get(kernels.available().instructions, 0)]
NAMES = ("conv2d_forward_nchw", "conv2d_grad_input_nchw", "conv2d_grad_weight_oihw")


@pytest.fixture(autouse=True)
def _restore():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    kernels.choose("auto")


@st.composite
def convolutions(draw) -> tuple[tuple[int, ...], tuple[int, ...], dict]:
    """Shapes of x and of the weight, and the options of conv2d."""
    kernel = draw(st.integers(1, 5)), draw(st.integers(1, 9))
    stride, dilation = (tuple(draw(st.tuples(st.integers(1, n), st.integers(1, n)))) for n in (3, 3))
    padding = draw(st.tuples(st.integers(0, 4), st.integers(0, 4)))
    size = [
        max(1, d * (k - 1) + 1 - 2 * p) + draw(st.integers(0, 11))
        for k, d, p in zip(kernel, dilation, padding, strict=True)
    ]
    in_channels = draw(st.sampled_from([1, 1, 1, 2, 3, 4, 5, 8, 8, 16, 32]))
    others = [1, 2, 3, 4, 7, 8] if in_channels <= 8 else []
    out_channels = draw(st.sampled_from([in_channels, in_channels, *others]))
    groups = draw(st.sampled_from([2, 3, 5, 8, 16, 17, 24, 33, 72]))
    x_shape = draw(st.integers(0, 3)), groups * in_channels, *size
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return x_shape, (groups * out_channels, in_channels, *kernel), options


def numbers(shape: tuple[int, ...], whole: bool, channels_last: bool) -> Tensor:
    x = torch.randint(-3, 4, shape).float() if whole else torch.randn(shape)
    return x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def operands(x: Tensor, w: Tensor, b: Tensor | None, g: Tensor, geometry: Conv2dGeometry) -> list[tuple]:
    return [(x, w, b, geometry), (g, w, geometry), (g, x, geometry)]


def native(x: Tensor, w: Tensor, b: Tensor | None, g: Tensor, options: dict) -> list[Tensor]:
    """C(x, w) + b, and the gradients of x and w."""
    x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
    flipped = w.flip(2, 3) if options["flip_kernel"] else w
    names = ("stride", "padding", "dilation", "groups")
    out = F.conv2d(x, flipped, b, **{name: options[name] for name in names})
    return [out.detach(), *torch.autograd.grad(out, (x, w), g)]


def ulp(t: Tensor) -> float:
    return torch.finfo(torch.float32).eps * t.abs().max().item()


def check(x_shape: tuple[int, ...], w_shape: tuple[int, ...], options: dict, layouts: tuple[bool, bool]) -> None:
    geometry = make_conv2d_geometry(torch.empty(x_shape), torch.empty(w_shape), None, **options)
    out_shape = x_shape[0], w_shape[0], *geometry.windows.output_size(*x_shape[2:])
    memory_format = torch.channels_last if geometry.channels_last else torch.contiguous_format
    for whole in (True, False):
        x, w, g = (
            numbers(x_shape, whole, layouts[0]),
            numbers(w_shape, whole, layouts[1]),
            numbers(out_shape, whole, True),
        )
        b = numbers(w_shape[:1], whole, False) if layouts[1] else None
        results = [by_kernel(name, *args) for name, args in zip(NAMES, operands(x, w, b, g, geometry), strict=True)]
        assert all(result is not None for result in results), "a kernel was not used"
        assert all(result.is_contiguous(memory_format=memory_format) for result in results)
        if whole:
            for name, args, result in zip(NAMES, operands(x, w, b, g, geometry), results, strict=True):
                assert torch.equal(result, getattr(formulas, name).__wrapped__(*args)), name
        elif x.numel():
            theirs = native(x, w, b, g, options)
            exact = native(x.double(), w.double(), None if b is None else b.double(), g.double(), options)
            for name, ours, their, right in zip(NAMES, results, theirs, exact, strict=True):
                error, native_error = ((t - right).abs().max().item() for t in (ours, their))
                assert error <= 2 * native_error + 2 * ulp(right), name


DEPTHWISE_7X7 = ((1, 24, 16, 16), (24, 1, 7, 7), {"stride": 1, "padding": 3, "dilation": 1, "groups": 24})
LARGE = ((3, 40, 23, 17), (40, 1, 3, 3), {"stride": 2, "padding": 1, "dilation": 1, "groups": 40})
WHOLE_VECTORS = [  # groups of one or two vectors, with runs of 11 and 6 pixels, and of 8 and 5: tiles of 6, 4 and 5
    ((1, 24, 14, 13), (24, 8, 3, 3), {"stride": 1, "padding": 1, "dilation": 1, "groups": 3}),
    ((2, 32, 7, 10), (32, 16, 3, 3), {"stride": 1, "padding": 1, "dilation": 1, "groups": 2}),
    ((2, 64, 7, 10), (64, 32, 3, 3), {"stride": 1, "padding": 1, "dilation": 1, "groups": 2}),
]
WITHOUT_TAPS = ((2, 6, 7, 8), (12, 1, 1, 1), {"stride": 3, "padding": 0, "dilation": 1, "groups": 6})


@given(
    convolutions(), st.tuples(st.booleans(), st.booleans()), st.booleans(), st.booleans(), st.integers(1, 4),
    st.sampled_from(sorted(jit.LANES)), st.integers(0, 99),
)  # fmt: skip
@example(DEPTHWISE_7X7, (True, True), True, True, 2, "avx2", 0)
@example(LARGE, (True, False), False, True, 3, "avx2", 0)  # enough numbers for 3 threads
@example(WITHOUT_TAPS, (False, True), True, False, 1, "avx2", 0)  # no output has some pixels of the input
@example(WHOLE_VECTORS[0], (True, True), False, True, 2, "avx512", 0)
@example(WHOLE_VECTORS[1], (True, False), True, True, 1, "avx512", 0)
@example(WHOLE_VECTORS[1], (True, True), True, True, 2, "avx2", 0)
@example(WHOLE_VECTORS[2], (True, True), False, True, 2, "avx512", 0)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_kernels_equal_formulas(convolution, layouts, flip, channels_last, threads, instructions, seed):
    x_shape, w_shape, options = convolution
    kernels.choose(instructions if instructions in jit.instruction_sets() else "auto")
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    check(x_shape, w_shape, options | {"flip_kernel": flip, "channels_last": channels_last}, layouts)


@pytest.mark.parametrize("group_size", SERVED)
@pytest.mark.parametrize("nonfinite", ["x", "gradient", "weight"])
def test_numbers_that_are_not_finite(group_size, nonfinite):
    """NaN and infinity are where native has them. A weight that is not finite meets no padding here: native's kernels
    disagree there, since some of them multiply it by the zeros of the border."""
    torch.manual_seed(0)
    special = torch.tensor([1.0, 2, -1, 0, torch.inf, -torch.inf, torch.nan])
    shapes = {"x": (2, 16 * group_size, 8, 9), "weight": (16 * group_size, group_size, 3, 3)}
    options = {"stride": 1, "padding": 0 if nonfinite == "weight" else 1, "dilation": 1, "groups": 16}
    options |= {"flip_kernel": False, "channels_last": True}
    geometry = make_conv2d_geometry(*map(torch.empty, shapes.values()), None, **options)
    shapes["gradient"] = 2, shapes["weight"][0], *geometry.windows.output_size(8, 9)
    tensors = {name: numbers(shape, True, True) for name, shape in shapes.items()}
    tensors[nonfinite].copy_(special[torch.randint(len(special), shapes[nonfinite])])
    x, w, g = tensors["x"], tensors["weight"], tensors["gradient"]
    expected = native(x, w, None, g, options)
    for name, args, right in zip(NAMES, operands(x, w, None, g, geometry), expected, strict=True):
        torch.testing.assert_close(by_kernel(name, *args), right, rtol=0, atol=0, equal_nan=True)


def test_an_infinite_weight_does_not_meet_padding():
    x, w = torch.ones(1, 8, 3, 3), torch.ones(8, 1, 3, 3)
    w[:, :, 0] = torch.inf
    out = conv2d(x, w, padding=1, groups=8, flip_kernel=False)
    assert out[:, :, 0].isfinite().all() and (out[:, :, 1:] == torch.inf).all()
    assert torch.equal(
        out, F.conv2d(*(t.contiguous(memory_format=torch.channels_last) for t in (x, w)), None, 1, 1, 1, 8)
    )


def test_results_do_not_depend_on_the_layout_of_the_operands_nor_on_the_call():
    torch.manual_seed(1)
    torch.set_num_threads(2)
    large = torch.randn(4, 33, 30, 40)
    x, w = large[:, :, ::2, 1:21], torch.randn(5, 5, 33, 1).permute(2, 3, 0, 1)
    g = torch.ones(()).expand(4, 33, 15, 20)  # as the gradient of a sum is
    geometry = make_conv2d_geometry(x, w, None, 1, 2, 1, 33, True, True)
    for name, args in zip(NAMES, operands(x, w, None, g, geometry), strict=True):
        result = by_kernel(name, *args)
        others = [
            by_kernel(name, *args),
            by_kernel(name, *(a.contiguous() if isinstance(a, Tensor) else a for a in args)),
        ]
        assert all(torch.equal(result, other) for other in others), name


def test_forward_without_a_view_may_be_changed_in_place():
    x, w = torch.randn(2, 6, 5, 5, requires_grad=True), torch.randn(6, 1, 3, 3)
    for channels_last in (True, False):
        conv2d(x, w, groups=6, channels_last=channels_last).relu_().sum().backward()


def test_other_calls():
    x, w, g = torch.randn(2, 8, 6, 6), torch.randn(8, 1, 3, 3), torch.randn(2, 8, 4, 4)
    geometry = make_conv2d_geometry(x, w, None, 1, 0, 1, 8, True, True)
    truncated = x.clone()
    truncated.untyped_storage().resize_(8)
    for other in (x.double(), x.bfloat16(), truncated):
        assert by_kernel(NAMES[0], other, w, None, geometry) is None
        assert by_kernel(NAMES[2], g, other, geometry) is None
    assert by_kernel(NAMES[1], g, w.double(), geometry) is None
    assert by_kernel(NAMES[0], x, w, torch.randn(8).double(), geometry) is None
    records = kernels.explain(conv2d, x, w, groups=8).records
    assert str(records[0]).endswith("cpu kernel")


def test_kernels_are_compiled_when_a_call_needs_them(monkeypatch):
    loaded = []
    load_group = instruction_set.load_group
    monkeypatch.setattr(instruction_set, "load_group", lambda *args: loaded.append(args[1]) or load_group(*args))
    conv2d(torch.randn(1, 22, 9, 21), torch.randn(22, 1, 2, 2), groups=22)
    assert loaded == [f"{kernel_groups.GROUPED_CONV}1"]
