"""Promise: a kernel equals its formula on every branch, and each branch is tested."""

from __future__ import annotations

import pytest
import torch

from manualgrad import kernels
from manualgrad.cpu import jit, small_kernels
from manualgrad.dispatch import by_kernel
from manualgrad.ops import relu, softmax, softmax_cross_entropy
from manualgrad.ops.selection import compare, select
from manualgrad.ops.targets import target_distribution

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def special_values(dtype):
    """A condition and values: numbers of every kind, once where the condition is True and once where it is False."""
    values = torch.tensor([0.0, -0.0, 1.5, -2.0, torch.inf, -torch.inf, torch.nan, 1e-8, 6e4], dtype=dtype)
    return torch.tensor([True, False]).repeat_interleave(len(values)), values.repeat(2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_select_equals_where(dtype):
    condition, value = special_values(dtype)
    expected, selected = torch.where(condition, value, 0), select(condition, value)
    assert selected.dtype == dtype
    assert torch.equal(selected.isnan(), expected.isnan())
    assert torch.equal(selected.nan_to_num(7), expected.nan_to_num(7))
    assert torch.equal(selected.signbit(), expected.signbit())


@pytest.mark.parametrize("shape", [(0, 3), (1,), (), (2, 3, 4, 5)], ids=str)
def test_select_of_any_layout(shape):
    value = torch.randn(shape)
    transposed = value.T if value.dim() == 2 else value
    for view in (value, transposed, value.expand(2, *shape), value.unsqueeze(0)[:, ...]):
        condition = view > 0
        assert torch.equal(select(condition, view), torch.where(condition, view, 0))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.uint8], ids=str)
def test_compare_equals_the_operator(dtype):
    x = torch.arange(5).to(dtype) if dtype == torch.uint8 else special_values(dtype)[1]
    for y in (x.flip(0), 2):
        for operator, expected in (("==", x == y), (">=", x >= y), ("<=", x <= y)):
            assert torch.equal(compare(x, operator, y), expected)
            if dtype != torch.uint8:
                batched = torch.vmap(lambda v, operator=operator: compare(v, operator, 2))(x)
                assert torch.equal(batched, compare(x, operator, 2))


def test_select_without_bit_masks():
    value = torch.randn(2, 3)
    assert torch.equal(select((value > 0)[:1], value), torch.where((value > 0)[:1], value, 0))  # broadcast
    integers = torch.arange(3)
    assert torch.equal(select(integers > 1, integers), torch.tensor([0, 0, 2]))
    batched = torch.vmap(lambda v: select(v > 0, v))(value)
    assert torch.equal(batched, torch.where(value > 0, value, 0))
    assert select(torch.ones(2, dtype=torch.bool, device="meta"), torch.ones(2, device="meta")).device.type == "meta"


# --------------------------------------------------------------------------------------------- the small kernels


@pytest.fixture(params=jit.LANES)
def instructions(request):
    try:
        is_supported = request.param in jit.instruction_sets()
    except jit.Unavailable as error:
        pytest.skip(str(error))
    if not is_supported:
        pytest.skip(f"this processor has no {request.param}")
    kernels.choose(request.param)
    yield request.param
    kernels.choose("auto")


def run_formula(formula, *arguments):
    kernels.choose("off")
    return formula(*arguments)


def random_logits(seed: int, rows: int, classes: int, nonfinite: bool) -> torch.Tensor:
    torch.manual_seed(seed)
    z = 3 * torch.randn(rows, classes)
    if nonfinite:
        z[torch.rand(rows, classes) < 0.1] = torch.inf
        z[torch.rand(rows, classes) < 0.1] = -torch.inf
        z[torch.rand(rows, classes) < 0.05] = torch.nan
        z[0] = -300  # the softmax of all classes but the first rounds to 0
        z[0, 0] = 0
    return z


# Kernel and formula have different exp, log and order of summation: a few ulp for sums of at most 40 numbers.
TOLERANCE = {"rtol": 3e-6, "atol": 2e-6, "equal_nan": True}


@pytest.mark.parametrize("nonfinite", [False, True], ids=["finite", "nonfinite"])
@pytest.mark.parametrize(("rows", "classes"), [(1, 1), (1, 10), (7, 3), (64, 10), (65, 40)])
def test_softmax_and_cross_entropy(rows, classes, nonfinite, instructions):
    z, y = (
        random_logits(rows, rows, classes, nonfinite),
        torch.rand(rows, classes) * (torch.rand(rows, classes) < 0.7),
    )
    y[-1] = 0  # an example without a target
    g = torch.randn(rows)
    for formula, arguments in [
        (softmax.softmax_forward, (z, -1)),
        (softmax_cross_entropy.cross_entropy_forward, (z, y, False)),
        (softmax_cross_entropy.cross_entropy_forward, (z, y, True)),
        (softmax_cross_entropy.cross_entropy_backward, (g, z, y)),
        (softmax_cross_entropy.cross_entropy_backward, (g[0], z, y)),
    ]:
        kernels.choose(instructions)
        ours = by_kernel(formula.__name__, *arguments)
        assert ours is not None, "the kernel was not used"
        expected = run_formula(formula, *arguments)
        assert ours.shape == expected.shape
        scale = rows if arguments[-1] is True else 1
        torch.testing.assert_close(ours, expected, **{**TOLERANCE, "atol": TOLERANCE["atol"] * scale})


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_targets_from_labels(reduction, instructions):
    z, labels = torch.randn(9, 4), torch.tensor([0, 3, 1, 2, 2, -100, 0, -100, 3])
    ours, _ = by_kernel("targets_from_labels", labels, z, None, 4, -100, reduction == "mean", 0.0)
    expected = run_formula(target_distribution, z, labels, None, -100, reduction, 0.0)
    assert torch.equal(ours, expected.y)
    kernels.choose(instructions)
    for invalid_label in (4, -1, 2**40, -(2**40)):
        labels[3] = invalid_label
        assert by_kernel("targets_from_labels", labels, z, None, 4, -100, True, 0.0) is None
        with pytest.raises(IndexError, match=f"between 0 and 3, got {invalid_label}"):
            target_distribution(z, labels, None, -100, reduction, 0.0)
    ignored = torch.full((3,), -100)
    assert by_kernel("targets_from_labels", ignored, z[:3], None, 4, -100, True, 0.0) is None, "the mean over no rows"


@pytest.mark.parametrize("subgradient", [0, 0.5, 1])
@pytest.mark.parametrize("numel", [1, 15, 16, 17, 300, 100_001])
def test_relu_backward(numel, subgradient, instructions):
    values = torch.tensor([0.0, -0.0, 1.5, -2.0, torch.inf, -torch.inf, torch.nan])
    z, g = values[torch.randint(7, (numel,))], values[torch.randint(7, (numel,))]
    ours = by_kernel("relu_backward", g, z, subgradient)
    expected = run_formula(relu.relu_backward, g, z, subgradient)
    assert torch.equal(ours.isnan(), expected.isnan())
    assert torch.equal(ours.nan_to_num(7), expected.nan_to_num(7))


def test_relu_backward_of_many_numbers(instructions):
    z = torch.randn(small_kernels.STREAM_NUMEL + 1 + 40).relu_()[1:]  # off the lines of the caches
    g = torch.randn_like(z)
    assert torch.equal(by_kernel("relu_backward", g, z, 0), g * (z > 0))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_relu_backward_takes_gradients_of_any_strides(memory_format, instructions):
    """The gradient of a part of a concatenation is a view with gaps, that of a sum has strides 0."""
    z = torch.randn(2, 3, 4, 5).contiguous(memory_format=memory_format)
    whole = torch.randn(2, 7, 4, 5).contiguous(memory_format=memory_format)
    negated = torch.complex(z, z).conj().imag
    grads = whole[:, 2:5], torch.randn(1).expand(z.shape), torch.randn(5, 4, 3, 2).permute(3, 2, 1, 0), negated
    results = [by_kernel("relu_backward", g, z, 0.5) for g in grads]  # before run_formula switches kernels off
    for g, ours in zip(grads, results, strict=True):
        assert ours.stride() == z.stride()
        assert torch.equal(ours, run_formula(relu.relu_backward, g, z, 0.5))


def test_kernels_do_not_support_other_layouts_and_dtypes(instructions):
    z = torch.randn(6, 6)
    image = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    assert by_kernel("relu_backward", image, image, 0.5).stride() == image.stride()
    for other in (z.double(), z.half(), z.t(), z[:, ::2], z.expand(2, 6, 6)):
        assert by_kernel("softmax_forward", other, -1) is None
        assert by_kernel("cross_entropy_forward", other, other, True) is None
    assert by_kernel("relu_backward", z, z.t(), 0.5) is None
    assert by_kernel("softmax_forward", z, 0) is None
    assert by_kernel("softmax_forward", torch.randn(1000, 10), -1) is None, "vectorised operators are faster"
    assert by_kernel("softmax_backward", z, z, -1) is None, "the formula is as fast"
    truncated = torch.randn(4, 4)
    truncated.untyped_storage().resize_(8)
    assert by_kernel("softmax_forward", truncated, -1) is None
    assert by_kernel("relu_backward", truncated, truncated, 0.5) is None
