"""Promise: a kernel computes what its formula does, on every branch, and each branch is seen to run."""

from __future__ import annotations

import pytest
import torch

from manualgrad import kernels
from manualgrad.cpu import jit, masking, small_kernels
from manualgrad.ops import relu, softmax, softmax_cross_entropy
from manualgrad.ops.selection import holds, select
from manualgrad.ops.targets import target_distribution

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def strange(dtype):
    """Numbers of every kind, and the choice to keep each of them or not."""
    values = torch.tensor([0.0, -0.0, 1.5, -2.0, torch.inf, -torch.inf, torch.nan, 1e-8, 6e4], dtype=dtype)
    return torch.tensor([True, False]).repeat_interleave(len(values)), values.repeat(2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_select_is_where(dtype):
    condition, value = strange(dtype)
    assert masking.takes(condition, value)
    expected = torch.where(condition, value, 0)
    for selected in (masking.select(condition, value), select(condition, value)):
        assert selected.dtype == dtype
        assert torch.equal(selected.isnan(), expected.isnan())
        assert torch.equal(selected.nan_to_num(7), expected.nan_to_num(7))
        assert torch.equal(selected.signbit(), expected.signbit())


@pytest.mark.parametrize("shape", [(0, 3), (1,), (), (2, 3, 4, 5)], ids=str)
def test_select_of_any_layout(shape):
    value = torch.randn(shape)
    for layout in (
        value,
        value.T if value.dim() == 2 else value,
        value.expand(2, *shape),
        value.unsqueeze(0)[:, ...],
    ):
        condition = layout > 0
        assert torch.equal(masking.select(condition, layout), torch.where(condition, layout, 0))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.uint8], ids=str)
def test_holds_is_the_comparison(dtype):
    x = torch.arange(5).to(dtype) if dtype == torch.uint8 else strange(dtype)[1]
    for y in (x.flip(0), 2):
        for sign, expected in (("==", x == y), (">=", x >= y), ("<=", x <= y)):
            assert torch.equal(holds(x, sign, y), expected)
            if dtype != torch.uint8:
                assert torch.equal(torch.vmap(lambda v, sign=sign: holds(v, sign, 2))(x), holds(x, sign, 2))


def test_the_formula_serves_where_the_kernel_does_not(monkeypatch):
    def refuse(*_):
        raise AssertionError("the kernel ran")

    monkeypatch.setattr(masking, "select", refuse)
    value = torch.randn(2, 3)
    with pytest.raises(AssertionError, match="the kernel ran"):
        select(value > 0, value)
    assert torch.equal(select((value > 0)[:1], value), torch.where((value > 0)[:1], value, 0))  # broadcast
    whole = torch.arange(3)
    assert torch.equal(select(whole > 1, whole), torch.tensor([0, 0, 2]))
    batched = torch.vmap(lambda v: select(v > 0, v))(value)
    assert torch.equal(batched, torch.where(value > 0, value, 0))
    assert select(torch.ones(2, dtype=torch.bool, device="meta"), torch.ones(2, device="meta")).device.type == "meta"


# ---------------------------------------------------------------------------------------------- the small kernels


@pytest.fixture(params=jit.LANES)
def instructions(request):
    try:
        there = request.param in jit.instruction_sets()
    except jit.Unavailable as reason:
        pytest.skip(str(reason))
    if not there:
        pytest.skip(f"this processor has no {request.param}")
    kernels.choose(request.param)
    yield request.param
    kernels.choose("auto")


def by_formula(function, *arguments):
    kernels.choose("off")
    return function(*arguments)


def table(seed: int, count: int, classes: int, odd: bool) -> torch.Tensor:
    torch.manual_seed(seed)
    z = 3 * torch.randn(count, classes)
    if odd:
        z[torch.rand(count, classes) < 0.1] = torch.inf
        z[torch.rand(count, classes) < 0.1] = -torch.inf
        z[torch.rand(count, classes) < 0.05] = torch.nan
        z[0] = -300  # whose softmax beside the next is 0
        z[0, 0] = 0
    return z


# Two ways to exp, log and to a sum of at most 40 numbers: some units in the last place of what was added.
CLOSE = {"rtol": 3e-6, "atol": 2e-6, "equal_nan": True}


@pytest.mark.parametrize("odd", [False, True], ids=["finite", "odd"])
@pytest.mark.parametrize(("count", "classes"), [(1, 1), (1, 10), (7, 3), (64, 10), (65, 40)])
def test_softmax_and_its_cross_entropy(count, classes, odd, instructions):
    z, y = table(count, count, classes, odd), torch.rand(count, classes) * (torch.rand(count, classes) < 0.7)
    y[-1] = 0  # an example without a target
    g = torch.randn(count)
    for function, kernel, arguments in [
        (softmax.softmax_forward, small_kernels.softmax_forward, (z, -1)),
        (softmax_cross_entropy.cross_entropy, small_kernels.cross_entropy, (z, y, False)),
        (softmax_cross_entropy.cross_entropy, small_kernels.cross_entropy, (z, y, True)),
        (softmax_cross_entropy.cross_entropy_backward, small_kernels.cross_entropy_backward, (g, z, y)),
        (softmax_cross_entropy.cross_entropy_backward, small_kernels.cross_entropy_backward, (g[0], z, y)),
    ]:
        kernels.choose(instructions)
        ours = kernel(*arguments)
        assert ours is not None, "the kernel was not used"
        expected = by_formula(function, *arguments)
        assert ours.shape == expected.shape
        scale = count if arguments[-1] is True else 1
        torch.testing.assert_close(ours, expected, **{**CLOSE, "atol": CLOSE["atol"] * scale})


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_targets_from_labels(reduction, instructions):
    z, labels = torch.randn(9, 4), torch.tensor([0, 3, 1, 2, 2, -100, 0, -100, 3])
    ours = small_kernels.labels_distribution(labels, z, 4, -100, reduction == "mean")
    expected = by_formula(target_distribution, z, labels, None, -100, reduction, 0.0)
    assert torch.equal(ours, expected.y)
    kernels.choose(instructions)
    for outside in (4, -1, 2**40, -(2**40)):
        labels[3] = outside
        assert small_kernels.labels_distribution(labels, z, 4, -100, True) is None
        with pytest.raises(IndexError, match=f"between 0 and 3, got {outside}"):
            target_distribution(z, labels, None, -100, reduction, 0.0)
    assert small_kernels.labels_distribution(torch.full((3,), -100), z[:3], 4, -100, True) is None, (
        "the mean of nothing"
    )


@pytest.mark.parametrize("subgradient", [0, 0.5, 1])
@pytest.mark.parametrize("count", [1, 15, 16, 17, 300, 100_001])
def test_the_derivative_of_relu(count, subgradient, instructions):
    kinds = torch.tensor([0.0, -0.0, 1.5, -2.0, torch.inf, -torch.inf, torch.nan])
    z, g = kinds[torch.randint(7, (count,))], kinds[torch.randint(7, (count,))]
    ours = small_kernels.relu_backward(g, z, subgradient)
    expected = by_formula(relu.relu_backward, g, z, subgradient)
    assert torch.equal(ours.isnan(), expected.isnan())
    assert torch.equal(ours.nan_to_num(7), expected.nan_to_num(7))


def test_other_layouts_and_dtypes_are_for_the_formulas(instructions):
    z = torch.randn(6, 6)
    image = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    assert small_kernels.relu_backward(image, image, 0.5).stride() == image.stride()
    for other in (z.double(), z.half(), z.t(), z[:, ::2], z.expand(2, 6, 6)):
        assert small_kernels.softmax_forward(other, -1) is None
        assert small_kernels.cross_entropy(other, other, True) is None
    assert small_kernels.relu_backward(z.t(), z, 0.5) is None
    assert small_kernels.softmax_forward(z, 0) is None
    assert small_kernels.softmax_forward(torch.randn(1000, 10), -1) is None, "operators on vectors are faster"
    taken = torch.randn(4, 4)
    taken.untyped_storage().resize_(8)
    assert small_kernels.softmax_forward(taken, -1) is None
    assert small_kernels.relu_backward(taken, taken, 0.5) is None
