"""Properties for all shapes, strides, paddings, dilations, groups, dtypes and memory layouts, drawn by Hypothesis.

All inputs are small whole numbers, so convolution, pooling and dense layers are exact and equal native ones bit for
bit, whatever the order of summation. Softmax and its loss are checked by properties of any logits.
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

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")  # a warning of PyTorch's layer

settings.register_profile("local", deadline=None, max_examples=100)
settings.register_profile("ci", deadline=None, max_examples=100, derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "local")

# ------------------------------------------------------------------------------------------- strategies

DTYPES = st.sampled_from([torch.float32, torch.float64])
ALL_DTYPES = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])  # exact up to 256
SEEDS = st.integers(0, 2**31)


@st.composite
def whole_numbers(draw: st.DrawFn, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Whole numbers from -3 to 3 in any memory layout: permuted dimensions, gaps, or one dimension expanded.

    Hypothesis draws a seed and not each number, so that a failure shrinks to a small shape.
    """
    generator = torch.Generator().manual_seed(draw(SEEDS))
    x = torch.randint(-3, 4, shape, generator=generator).to(dtype)
    order = draw(st.permutations(range(len(shape))))
    x = x.permute(order).contiguous().permute([order.index(dim) for dim in range(len(shape))])
    layout = draw(st.sampled_from(["permuted", "gaps", "expanded"])) if shape else "permuted"
    if layout == "gaps":
        return torch.stack([x, x + 99], -1)[..., 0]
    if layout == "expanded":
        dim = draw(st.integers(0, len(shape) - 1))
        return x.narrow(dim, 0, min(1, shape[dim])).expand(shape)
    return x


def pairs(minimum: int, maximum: int) -> st.SearchStrategy[tuple[int, int]]:
    number = st.sampled_from(range(minimum, maximum + 1))  # uniform, where integers() prefers the bounds
    return st.tuples(number, number)


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[list[Tensor], dict[str, Any]]:
    """[input, weight] or [input, weight, bias], and options with which the kernel fits."""
    dtype, kernel, dilation = draw(DTYPES), draw(pairs(1, 3)), draw(pairs(1, 3))
    groups, group_in, group_out = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    span = [d * (n - 1) + 1 for n, d in zip(kernel, dilation, strict=True)]
    padding = draw(st.sampled_from(["pair", "number", "same", "same", "valid"]))
    padding = {"pair": draw(pairs(0, 3)), "number": draw(st.integers(0, 2))}.get(padding, padding)
    stride = 1 if padding == "same" else draw(st.one_of(pairs(1, 3), st.integers(1, 3)))
    border = {"same": tuple(n // 2 for n in span), "valid": (0, 0)}.get(padding, padding)
    border = (border, border) if isinstance(border, int) else border
    size = [max(1, n - 2 * b) + draw(st.integers(0, 5)) for n, b in zip(span, border, strict=True)]
    batch = draw(st.one_of(st.just(()), st.tuples(st.integers(0, 3))))
    shapes = [(*batch, groups * group_in, *size), (groups * group_out, group_in, *kernel)]
    if draw(st.booleans()):
        shapes.append((groups * group_out,))
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return [draw(whole_numbers(shape, dtype)) for shape in shapes], options


@st.composite
def poolings(draw: st.DrawFn, dtypes: st.SearchStrategy[torch.dtype] = DTYPES) -> tuple[Tensor, dict[str, Any]]:
    """An input, and options with which each window contains a pixel of the input.

    It does if the image is at least as large as the dilation. Otherwise PyTorch's backward may crash.
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
    """Assert that outputs and gradients are equal bit for bit, for an output gradient of any layout."""
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
def test_relu_is_native(shape: tuple[int, ...], dtype: torch.dtype, subgradient: float, data: st.DataObject) -> None:
    native = {0: F.relu, 0.5: lambda x: torch.maximum(x, torch.zeros_like(x))}[subgradient]
    x = data.draw(whole_numbers(shape, dtype))
    assert_native_bits(data, lambda x: manualgrad.relu(x, subgradient=subgradient), native, [x])


@given(st.tuples(st.integers(0, 3), *[st.integers(1, 4)] * 3), ALL_DTYPES, st.data())
def test_flatten_is_native_after_a_permutation(
    shape: tuple[int, ...], dtype: torch.dtype, data: st.DataObject
) -> None:
    x = data.draw(whole_numbers(shape, dtype))
    assert_native_bits(data, manualgrad.flatten, lambda x: x.permute(0, 2, 3, 1).flatten(1), [x])


@st.composite
def cross_entropy_arguments(draw: st.DrawFn) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Logits, labels and options."""
    classes, batch = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    extra_dims = draw(st.lists(st.integers(1, 3), max_size=2))
    z = draw(whole_numbers((batch, classes, *extra_dims), draw(DTYPES)))
    generator = torch.Generator().manual_seed(draw(SEEDS))
    labels = torch.randint(classes, (batch, *extra_dims), generator=generator)
    weight = torch.rand(classes, generator=generator).to(z) + 0.1 if draw(st.booleans()) else None
    options = {
        "weight": weight,
        "reduction": draw(st.sampled_from(["mean", "sum", "none"])),
        "label_smoothing": draw(st.sampled_from([0.0, 0.2, 1.0])),
        "ignore_index": draw(st.sampled_from([-100, 0])),
    }
    assume((labels != options["ignore_index"]).any())
    return z, labels, options


@given(cross_entropy_arguments(), st.data())
def test_cross_entropy_is_native(arguments: tuple[Any, ...], data: st.DataObject) -> None:
    """The tolerance is 1e-5 in float32, 1e-12 in float64: about 40 terms of order 1, errors of 1e-7 and 1e-16."""
    z, labels, options = arguments
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
    """<C(x, w), g> = <x, X(g, w)> = <w, W(g, x)> exactly, where X and W are the sums of (2) and (3)."""
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
    """<P(x), g> = <x, P⁻¹(g)>: P⁻¹ sends the gradient to the pixel of the maximum."""
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
    """Each δ is sent to one pixel, so the sum of the gradient is the sum of δ, even if windows overlap."""
    x, options = pooling
    sums = []

    def gradient(output: Tensor) -> Tensor:
        g = data.draw(whole_numbers(tuple(output.shape), output.dtype))
        sums.append(g.sum())
        return g

    ours = run_forward_backward(lambda x: manualgrad.max_pool2d(x, **options), [x], gradient)
    assert ours["gradient 0"].sum() == sums[0]


# --------------------------------------------------------------------------------- softmax and its loss


@st.composite
def logits(draw: st.DrawFn, min_classes: int = 1) -> Tensor:
    """Logits of any scale up to the range of float64, in any memory layout."""
    shape = draw(st.tuples(st.integers(1, 3), st.integers(min_classes, 6)))
    return draw(whole_numbers(shape, torch.float64)) * draw(st.sampled_from([0.1, 1.0, 300.0, 1e300]))


@given(logits())
def test_softmax_sums_to_1_and_its_gradient_to_0(z: Tensor) -> None:
    """The tolerance is 1e-15 for each of at most 6 terms up to 1. (12) sums to 0 over j: a shift changes nothing."""
    g = torch.arange(1.0, 1 + z.numel(), dtype=z.dtype).view_as(z)
    ours = run_forward_backward(manualgrad.softmax, [z], lambda _: g)
    assert (ours["output"] >= 0).all()
    torch.testing.assert_close(ours["output"].sum(-1), z.new_ones(len(z)), rtol=0, atol=6e-15)
    assert (ours["gradient 0"].sum(-1).abs() <= 6e-15 * g.max()).all()


@given(st.data())
def test_shift_changes_neither_softmax_nor_loss(data: st.DataObject) -> None:
    """Results are equal bit for bit: both depend on z − max z, which is exact for whole numbers."""
    z = data.draw(whole_numbers(data.draw(st.tuples(st.integers(1, 3), st.integers(1, 6))), torch.float64))
    shift = data.draw(st.integers(-(2**40), 2**40))
    y = manualgrad.softmax(z.flip(1))
    for function in (manualgrad.softmax, lambda z: manualgrad.softmax_cross_entropy(z, y, reduction="none")):
        original, shifted = (run_forward_backward(function, [x], torch.ones_like) for x in (z, z + shift))
        assert all(torch.equal(original[name], shifted[name]) for name in original)


@given(logits(), SEEDS)
def test_loss_of_probabilities_is_never_negative(z: Tensor, seed: int) -> None:
    """The loss −Σ y log S is at least the entropy of y, and equals it for S = y.

    The tolerance is 1e-12: log S, up to log 1e5, has a relative error of 2e-16 in each of six terms.
    """
    generator = torch.Generator().manual_seed(seed)
    y = torch.rand(z.shape, generator=generator, dtype=z.dtype) + 1e-5
    y = y / y.sum(-1, keepdim=True)
    loss = manualgrad.softmax_cross_entropy(z, y, reduction="none")
    assert (loss >= 0).all()
    entropy = -(y * y.log()).sum(-1)
    assert (loss >= entropy - 1e-12).all()
    minimum = manualgrad.softmax_cross_entropy(y.log(), y, reduction="none")
    torch.testing.assert_close(minimum, entropy, rtol=0, atol=1e-12)
