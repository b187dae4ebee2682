"""Promise: the kernels of max-pooling equal their formulas bit for bit, for any windows, layout and numbers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from manualgrad import kernels, max_pool2d
from manualgrad.cpu import jit
from manualgrad.cpu import max_pool2d as kernel_calls
from manualgrad.dispatch import by_kernel
from manualgrad.ops import max_pool2d as formulas
from manualgrad.ops.max_pool2d_geometry import MaxPool2dGeometry, make_max_pool2d_geometry

pytestmark = pytest.mark.skipif(kernels.available().instructions is None, reason=str(kernels.available()))

SPECIAL = torch.tensor([0.0, -0.0, 1.0, 2.0, -1.0, torch.inf, -torch.inf, torch.nan])


@pytest.fixture(autouse=True)
def _restore():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    kernels.choose("auto")


@st.composite
def poolings(draw) -> tuple[tuple[int, ...], dict]:
    pairs = [st.tuples(st.integers(1, n), st.integers(1, n)) for n in (5, 4, 2)]
    kernel, stride, dilation = (draw(pair) for pair in pairs)
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    size = [
        max(1, d * (k - 1) + 1 - 2 * p) + draw(st.integers(0, extra))
        for k, d, p, extra in zip(kernel, dilation, padding, (7, 30), strict=True)
    ]
    channels = draw(st.sampled_from([1, 3, 4, 6, 8, 11, 16, 20, 32, 33, 64, 71]))
    windows = {"kernel_size": kernel, "stride": stride, "padding": padding, "dilation": dilation}
    return (draw(st.integers(0, 3)), channels, *size), {**windows, "ceil_mode": draw(st.booleans())}


def same_numbers(ours: torch.Tensor, expected: torch.Tensor) -> bool:
    """Equal numbers, and NaN at the same places; 0 equals −0, which torch.maximum does not tell apart."""
    return torch.equal(ours.isnan(), expected.isnan()) and torch.equal(ours.nan_to_num(7), expected.nan_to_num(7))


def bits(t: torch.Tensor) -> torch.Tensor:
    return t.contiguous().view(torch.int32)


def numbers(shape: tuple[int, ...], special: bool, channels_last: bool) -> torch.Tensor:
    x = SPECIAL[torch.randint(len(SPECIAL), shape)] if special else torch.randn(shape)
    return x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def check(shape: tuple[int, ...], geometry: MaxPool2dGeometry, special: bool, layouts: tuple[bool, bool]) -> None:
    x = numbers(shape, special, layouts[0]).permute(0, 2, 3, 1)
    results = by_kernel("max_pool2d_forward", x, geometry)
    assert results is not None, "the kernel was not used"
    maximum, pool_index = results
    expected_maximum, expected_index = formulas.max_pool2d_forward.__wrapped__(x, geometry)
    assert torch.equal(pool_index, expected_index)
    assert same_numbers(maximum, expected_maximum)
    pool_index = pool_index.permute(0, 3, 1, 2)
    g = numbers(pool_index.shape, special, layouts[1])
    grad_x = by_kernel("max_pool2d_backward", g, pool_index, geometry)
    expected = formulas.max_pool2d_backward.__wrapped__(g, pool_index, geometry)
    assert grad_x.shape == expected.shape
    if special:
        assert same_numbers(grad_x, expected)
        assert torch.equal(grad_x.signbit() & (grad_x == 0), expected.signbit() & (expected == 0))
    else:
        assert torch.equal(bits(grad_x), bits(expected))


OVERLAPPING = {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 1, "ceil_mode": True}
SAME = {"kernel_size": (3, 5), "stride": 1, "padding": (1, 2), "dilation": 1, "ceil_mode": False}
OUTSIDE = {"kernel_size": 2, "stride": 1, "padding": 1, "dilation": 5, "ceil_mode": False}  # no pixel in the window


@given(
    poolings(), st.booleans(), st.tuples(st.booleans(), st.booleans()), st.booleans(), st.integers(1, 3),
    st.sampled_from(sorted(jit.LANES)), st.integers(0, 99), st.booleans(),
)  # fmt: skip
@example(((2, 40, 4, 4), OUTSIDE), True, (True, True), True, 1, "avx2", 0, True)
@example(((3, 64, 23, 17), OVERLAPPING), True, (True, True), True, 3, "avx2", 0, True)  # enough numbers for 3 threads
@example(((3, 64, 23, 37), OVERLAPPING), True, (False, False), False, 3, "avx2", 0, True)
@example(((2, 3, 8, 5), OVERLAPPING), True, (False, False), False, 1, "avx2", 0, True)  # rows shorter than a vector
@example(((2, 4, 6, 40), SAME), True, (False, False), False, 1, "avx2", 0, True)  # stride 1
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_kernel_equals_formula(pooling, special, layouts, channels_last, threads, instructions, seed, streams):
    shape, options = pooling
    kernels.choose(instructions if instructions in jit.instruction_sets() else "auto")
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel_calls, "STREAM_NUMEL", 0 if streams else kernel_calls.STREAM_NUMEL)
        kernel_calls._program.cache_clear()
        check(shape, make_max_pool2d_geometry(shape, **options, channels_last=channels_last), special, layouts)
    kernel_calls._program.cache_clear()


@pytest.mark.parametrize("channels_last", [True, False])
def test_results_have_the_memory_format_of_the_geometry(channels_last):
    x = torch.randn(2, 5, 9, 8, requires_grad=True)
    explanation = kernels.explain(max_pool2d, x, 3, 2, 1, channels_last=channels_last)
    assert str(explanation.records[0]).endswith("cpu kernel")
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    assert explanation.result.is_contiguous(memory_format=memory_format)
    geometry = make_max_pool2d_geometry(tuple(x.shape), 3, 2, 1, 1, False, channels_last)
    pool_index = torch.zeros(explanation.result.shape, dtype=torch.uint8)
    g = torch.ones(()).expand(pool_index.shape)  # as the gradient of a sum is
    grad_x = by_kernel("max_pool2d_backward", g, pool_index, geometry)
    assert grad_x.is_contiguous(memory_format=memory_format)
    assert torch.equal(grad_x, formulas.max_pool2d_backward.__wrapped__(g, pool_index, geometry))


def test_any_pooling_index_stays_within_its_window():
    geometry = make_max_pool2d_geometry((1, 8, 5, 5), 2, 2, 1, 1, False)
    pool_index = torch.arange(72, dtype=torch.uint8).view(1, 8, 3, 3) * 3
    g = torch.randn(1, 8, 3, 3)
    ours = by_kernel("max_pool2d_backward", g, pool_index, geometry)
    assert torch.equal(ours, formulas.max_pool2d_backward.__wrapped__(g, pool_index, geometry))


def test_the_formula_computes_other_calls():
    x, geometry = torch.randn(1, 8, 8, 3), make_max_pool2d_geometry((1, 3, 8, 8), 2, 2, 0, 1, False)
    large = make_max_pool2d_geometry((1, 3, 20, 20), (17, 16), 1, 0, 1, False)
    truncated = torch.randn(1, 8, 8, 3)
    truncated.untyped_storage().resize_(8)
    for other, its_geometry in [
        (x.double(), geometry), (x.half(), geometry), (x[:, 1:], geometry), (truncated, geometry),
        (torch.randn(1, 20, 20, 3), large),
    ]:  # fmt: skip
        assert by_kernel("max_pool2d_forward", other, its_geometry) is None
    g, pool_index = torch.randn(1, 3, 4, 4), torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    for others in [(g.double(), pool_index), (g, pool_index.int()), (g[:, :2], pool_index), (g[..., :3],) * 2]:
        assert by_kernel("max_pool2d_backward", *others, geometry) is None
    assert by_kernel("max_pool2d_forward", x[..., :2], geometry) is not None, "a view is copied first"
