"""Hypothesis draws shapes, strides, paddings, dilations, groups, dtypes and memory layouts.

All inputs are small whole numbers, so that convolution, pooling and dense layers are exact, and equal to native ones
bit for bit, whatever the order of summation; softmax and its cost are checked by what must hold for any logits.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

import manualgrad
from tests.conftest import run_forward_backward

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")  # natively a copy; not our concern

settings.register_profile("local", deadline=None, max_examples=100)
settings.register_profile("ci", deadline=None, max_examples=100, derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "local")

# ------------------------------------------------------------------------------------------- strategies

DTYPES = st.sampled_from([torch.float32, torch.float64])
ALL_DTYPES = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])  # exact up to 256
SEEDS = st.integers(0, 2**31)


@st.composite
def whole_numbers(draw: st.DrawFn, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """-3 to 3 of a drawn memory layout: dimensions in any order, with gaps, or one of them expanded.

    Hypothesis draws a seed and not each number: a failure shrinks to a small shape, which is what tells the most.
    """
    generator = torch.Generator().manual_seed(draw(SEEDS))
    x = torch.randint(-3, 4, shape, generator=generator).to(dtype)
    order = draw(st.permutations(range(len(shape))))
    x = x.permute(order).contiguous().permute([order.index(dim) for dim in range(len(shape))])
    how = draw(st.sampled_from(["as it is", "gaps", "expanded"])) if shape else "as it is"
    if how == "gaps":
        return torch.stack([x, x + 99], -1)[..., 0]
    if how == "expanded":
        dim = draw(st.integers(0, len(shape) - 1))
        return x.narrow(dim, 0, min(1, shape[dim])).expand(shape)
    return x


def pairs(least: int, most: int) -> st.SearchStrategy[tuple[int, int]]:
    number = st.sampled_from(range(least, most + 1))  # evenly, where integers() prefers the ends
    return st.tuples(number, number)


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[list[Tensor], dict[str, Any]]:
    """Input, weight and perhaps bias, and options under which the kernel fits."""
    dtype, kernel, dilation = draw(DTYPES), draw(pairs(1, 3)), draw(pairs(1, 3))
    groups, r, k = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    span = [d * (n - 1) + 1 for n, d in zip(kernel, dilation, strict=True)]
    padding = draw(st.sampled_from(["pair", "number", "same", "same", "valid"]))
    padding = {"pair": draw(pairs(0, 3)), "number": draw(st.integers(0, 2))}.get(padding, padding)
    stride = 1 if padding == "same" else draw(st.one_of(pairs(1, 3), st.integers(1, 3)))
    border = {"same": tuple(n // 2 for n in span), "valid": (0, 0)}.get(padding, padding)
    border = (border, border) if isinstance(border, int) else border
    size = [max(1, n - 2 * b) + draw(st.integers(0, 5)) for n, b in zip(span, border, strict=True)]
    batch = draw(st.one_of(st.just(()), st.tuples(st.integers(0, 3))))
    shapes = [(*batch, groups * r, *size), (groups * k, r, *kernel)]
    if draw(st.booleans()):
        shapes.append((groups * k,))
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return [draw(whole_numbers(shape, dtype)) for shape in shapes], options


@st.composite
def poolings(draw: st.DrawFn, dtypes: st.SearchStrategy[torch.dtype] = DTYPES) -> tuple[Tensor, dict[str, Any]]:
    """An input, and options under which each window sees a place of it.

    It does where the image is at least as large as the dilation; where it does not, native backward may crash.
    """
    kernel, stride, dilation = draw(pairs(1, 4)), draw(pairs(1, 4)), draw(pairs(1, 3))
    padding = tuple(draw(st.integers(0, n // 2)) for n in kernel)
    size = [
        max(d, d * (n - 1) + 1 - 2 * b) + draw(st.integers(0, 6))
        for n, d, b in zip(kernel, dilation, padding, strict=True)
    ]
    batch = draw(st.one_of(st.just(()), st.tuples(st.integers(0, 3))))
    x = draw(whole_numbers((*batch, draw(st.integers(1, 3)), *size), draw(dtypes)))
    options = {"kernel_size": kernel, "stride": stride, "padding": padding, "dilation": dilation}
    return x, options | {"ceil_mode": draw(st.booleans())}


SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)


def assert_native_bits(
    data: st.DataObject, ours: Callable[..., Any], native: Callable[..., Any], inputs: list[Tensor]
) -> None:
    """Equal outputs and gradients for an output gradient of any layout."""
    drawn: list[Tensor] = []

    def gradient(output: Tensor) -> Tensor:
        if not drawn:
            drawn.append(data.draw(whole_numbers(tuple(output.shape), output.dtype)))
        return drawn[0]

    results, expected = run_forward_backward(ours, inputs, gradient), run_forward_backward(native, inputs, gradient)
    assert results.keys() == expected.keys()
    for name, value in expected.items():
        assert results[name].dtype == value.dtype, name
        assert torch.equal(results[name], value), name


# -------------------------------------------------------------------------------------- equal to native


@settings(max_examples=200)  # more options than elsewhere
@given(convolutions(), st.booleans(), st.data())
def test_convolution_is_native(convolution: tuple[Any, Any], flip: bool, data: st.DataObject) -> None:
    inputs, options = convolution
    assert_native_bits(
        data,
        lambda x, w, b=None: manualgrad.conv2d(x, w, b, **options, flip_kernel=flip),
        lambda x, w, b=None: F.conv2d(x, w.flip(2, 3) if flip else w, b, **options),
        inputs,
    )


@given(poolings(ALL_DTYPES), st.data())
def test_pooling_is_native(pooling: tuple[Tensor, Any], data: st.DataObject) -> None:
    x, options = pooling
    assert_native_bits(
        data,
        lambda x: manualgrad.max_pool2d(x, **options, return_indices=True),
        lambda x: F.max_pool2d(x, **options, return_indices=True),
        [x],
    )


@given(SHAPES, st.integers(1, 5), st.integers(1, 4), DTYPES, st.booleans(), st.data())
def test_dense_is_native(
    lead: tuple[int, ...], features: int, outputs: int, dtype: torch.dtype, bias: bool, data: st.DataObject
) -> None:
    shapes = [(*lead, features), (outputs, features), *([(outputs,)] if bias else [])]
    inputs = [data.draw(whole_numbers(shape, dtype)) for shape in shapes]
    assert_native_bits(data, manualgrad.dense, F.linear, inputs)


@given(SHAPES, ALL_DTYPES, st.sampled_from([0, 0.5]), st.data())
def test_relu_is_native(shape: tuple[int, ...], dtype: torch.dtype, at_zero: float, data: st.DataObject) -> None:
    native = {0: F.relu, 0.5: lambda x: torch.maximum(x, torch.zeros_like(x))}[at_zero]
    x = data.draw(whole_numbers(shape, dtype))
    assert_native_bits(data, lambda x: manualgrad.relu(x, subgradient=at_zero), native, [x])


@given(st.tuples(st.integers(0, 3), *[st.integers(1, 4)] * 3), ALL_DTYPES, st.data())
def test_flatten_is_native_after_a_permutation(
    shape: tuple[int, ...], dtype: torch.dtype, data: st.DataObject
) -> None:
    x = data.draw(whole_numbers(shape, dtype))
    assert_native_bits(data, manualgrad.flatten, lambda x: x.permute(0, 2, 3, 1).flatten(1), [x])


@st.composite
def costs(draw: st.DrawFn) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Logits, labels, and options."""
    classes, batch = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    places = draw(st.lists(st.integers(1, 3), max_size=2))
    z = draw(whole_numbers((batch, classes, *places), draw(DTYPES)))
    generator = torch.Generator().manual_seed(draw(SEEDS))
    labels = torch.randint(classes, (batch, *places), generator=generator)
    weight = torch.rand(classes, generator=generator).to(z) + 0.1 if draw(st.booleans()) else None
    options = {
        "weight": weight,
        "reduction": draw(st.sampled_from(["mean", "sum", "none"])),
        "label_smoothing": draw(st.sampled_from([0.0, 0.2, 1.0])),
        "ignore_index": draw(st.sampled_from([-100, 0])),
    }
    assume((labels != options["ignore_index"]).any())
    return z, labels, options


@given(costs(), st.data())
def test_cross_entropy_is_native(cost: tuple[Any, ...], data: st.DataObject) -> None:
    """To 1e-5 in float32 and 1e-12 in float64: some 40 terms of order 1, each rounded to 1e-7 or 1e-16 of itself."""
    z, labels, options = cost
    g = data.draw(whole_numbers(tuple(F.cross_entropy(z, labels, **options).shape), z.dtype))
    ours, native = (
        run_forward_backward(lambda z, function=function: function(z, labels, **options), [z], lambda _: g)
        for function in (manualgrad.softmax_cross_entropy, F.cross_entropy)
    )
    tolerance = 1e-5 if z.dtype == torch.float32 else 1e-12
    torch.testing.assert_close(ours, native, rtol=tolerance, atol=tolerance)


# ------------------------------------------------------------------------------------------ adjointness


@given(convolutions(), st.data())
def test_gradients_of_convolution_are_its_adjoints(convolution: tuple[Any, Any], data: st.DataObject) -> None:
    """<C(x, w), g> = <x, X(g, w)> = <w, W(g, x)>, exactly; X and W are (2) and (3) summed."""
    (x, w, *_), options = convolution
    drawn = []

    def gradient(output: Tensor) -> Tensor:
        drawn.append(data.draw(whole_numbers(tuple(output.shape), output.dtype)))
        return drawn[0]

    ours = run_forward_backward(lambda x, w: manualgrad.conv2d(x, w, **options), [x, w], gradient)
    product = (ours["output"] * drawn[0]).sum()
    assert product == (x * ours["gradient 0"]).sum()
    assert product == (w * ours["gradient 1"]).sum()


@given(poolings(), st.data())
def test_gradient_of_pooling_is_its_adjoint(pooling: tuple[Tensor, Any], data: st.DataObject) -> None:
    """<P(x), g> = <x, P⁻¹(g)>: the maximum is where its gradient goes."""
    x, options = pooling
    products = []

    def gradient(output: Tensor) -> Tensor:
        g = data.draw(whole_numbers(tuple(output.shape), output.dtype))
        products.append((output * g).sum())
        return g

    ours = run_forward_backward(lambda x: manualgrad.max_pool2d(x, **options), [x], gradient)
    assert products[0] == (x * ours["gradient 0"]).sum()


@given(poolings(), st.data())
def test_unpooling_preserves_the_sum(pooling: tuple[Tensor, Any], data: st.DataObject) -> None:
    """Each δ goes to one place, so nothing is lost and nothing doubled, also where windows overlap."""
    x, options = pooling
    sums = []

    def gradient(output: Tensor) -> Tensor:
        g = data.draw(whole_numbers(tuple(output.shape), output.dtype))
        sums.append(g.sum())
        return g

    ours = run_forward_backward(lambda x: manualgrad.max_pool2d(x, **options), [x], gradient)
    assert ours["gradient 0"].sum() == sums[0]


# --------------------------------------------------------------------------------- softmax and its cost


@st.composite
def logits(draw: st.DrawFn, least: int = 1) -> Tensor:
    """Of any scale up to where float64 itself ends, and any layout."""
    shape = draw(st.tuples(st.integers(1, 3), st.integers(least, 6)))
    return draw(whole_numbers(shape, torch.float64)) * draw(st.sampled_from([0.1, 1.0, 300.0, 1e300]))


@given(logits())
def test_softmax_sums_to_1_and_its_gradient_to_0(z: Tensor) -> None:
    """To 1e-15 a term: at most 6 numbers up to 1 are added. (12) sums to 0 over j, the shift's derivative."""
    g = torch.arange(1.0, 1 + z.numel(), dtype=z.dtype).view_as(z)
    ours = run_forward_backward(manualgrad.softmax, [z], lambda _: g)
    assert (ours["output"] >= 0).all()
    torch.testing.assert_close(ours["output"].sum(-1), z.new_ones(len(z)), rtol=0, atol=6e-15)
    assert (ours["gradient 0"].sum(-1).abs() <= 6e-15 * g.max()).all()


@given(st.data())
def test_shift_changes_neither_softmax_nor_cost(data: st.DataObject) -> None:
    """Bit for bit, since both see z − max z alone, and of whole numbers that is exact."""
    z = data.draw(whole_numbers(data.draw(st.tuples(st.integers(1, 3), st.integers(1, 6))), torch.float64))
    shift = data.draw(st.integers(-(2**40), 2**40))
    y = manualgrad.softmax(z.flip(1))
    for function in (manualgrad.softmax, lambda z: manualgrad.softmax_cross_entropy(z, y, reduction="none")):
        one, other = (run_forward_backward(function, [x], torch.ones_like) for x in (z, z + shift))
        assert all(torch.equal(one[name], other[name]) for name in one)


@given(logits(), SEEDS)
def test_cost_of_probabilities_is_never_negative(z: Tensor, seed: int) -> None:
    """−Σ y log S, where no S is above 1; and at least the entropy of y, which it is where S = y.

    To 1e-12: log S is rounded to 2e-16 of up to log 1e5, in six terms.
    """
    generator = torch.Generator().manual_seed(seed)
    y = torch.rand(z.shape, generator=generator, dtype=z.dtype) + 1e-5
    y = y / y.sum(-1, keepdim=True)
    cost = manualgrad.softmax_cross_entropy(z, y, reduction="none")
    assert (cost >= 0).all()
    cross_entropy_apply = -(y * y.log()).sum(-1)
    assert (cost >= cross_entropy_apply - 1e-12).all()
    least = manualgrad.softmax_cross_entropy(y.log(), y, reduction="none")
    torch.testing.assert_close(least, cross_entropy_apply, rtol=0, atol=1e-12)
