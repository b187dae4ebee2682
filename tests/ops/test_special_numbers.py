"""Promise: infinities, NaN and extreme logits have native values and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import manualgrad
from tests.conftest import run_forward_backward
from tests.ops.native_values import INF, NAN, assert_native, conv2d, whole_numbers

SPECIAL = pytest.mark.parametrize("special", [NAN, INF, -INF], ids=str)


# ------------------------------------------------------------------------------------ NaN and infinities

CONVOLUTIONS = {
    "plain": {},
    "padded": {"padding": 1},
    "strided": {"stride": 2},
    "dilated, padded": {"dilation": 2, "padding": 2},
}


@SPECIAL
@pytest.mark.parametrize("where", ["input", "zero kernel", "kernel", "bias", "gradient"])
@pytest.mark.parametrize("options", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_convolution_propagates_special_numbers(special: float, where: str, options: dict[str, Any]) -> None:
    """0 · ∞ = NaN, with zeros of the padding or of the kernel, appears exactly where it does natively."""
    x, w, b = whole_numbers(1, 2, 6, 5), whole_numbers(2, 2, 3, 3), whole_numbers(2)
    g = whole_numbers(*F.conv2d(x, w, **options).shape)
    if where == "zero kernel":
        w.zero_()
    {"input": x, "zero kernel": x, "kernel": w, "bias": b, "gradient": g}[where].view(-1)[-1] = special
    assert_native(lambda *t: conv2d(*t, **options), lambda *t: F.conv2d(*t, **options), x, w, b, g=g)


@SPECIAL
@pytest.mark.parametrize("where", [0, 1, 2, 3], ids=["input", "weight", "bias", "gradient"])
def test_dense_propagates_special_numbers(special: float, where: int) -> None:
    x, w, b, g = tensors = whole_numbers(4, 3), whole_numbers(2, 3), whole_numbers(2), whole_numbers(4, 2)
    tensors[where].view(-1)[1] = special
    assert_native(manualgrad.dense, F.linear, x, w, b, g=g)


WINDOWS = {
    "one NaN": [1, NAN, 3, 2],
    "two NaN": [NAN, 1, NAN, 2],
    "NaN alone": [NAN, NAN, NAN, NAN],
    "NaN and inf": [INF, NAN, INF, 1],
    "NaN last": [1, 2, 3, NAN],
    "NaN and -inf": [-INF, NAN, -INF, -INF],
    "two inf": [1, INF, INF, 2],
    "-inf alone": [-INF, -INF, -INF, -INF],
    "-0 before 0": [-0.0, 0, -1, -0.0],
    "0 before -0": [0, -0.0, -1, 0],
}


POOLINGS = {
    "of 2": (2,),
    "overlapping": (2, 1),
    "overlapping, padded": (3, 1, 1),
    "dilated, padded": (3, 2, 1, 2),
    "beyond the image": (4, 3, 2, 1, True),
}


@pytest.mark.parametrize("values", WINDOWS.values(), ids=WINDOWS)
@pytest.mark.parametrize("options", POOLINGS.values(), ids=POOLINGS)
def test_pooling_chooses_among_special_values_as_native(values: list[float], options: tuple[Any, ...]) -> None:
    """Values, indices and gradients are native ones; of several NaN the last is the maximum."""
    x = torch.tensor(values).view(1, 1, 2, 2).repeat(1, 2, 3, 3)
    g = torch.arange(1.0, 1 + F.max_pool2d(x, *options).numel()).view_as(F.max_pool2d(x, *options))
    ours = assert_native(
        lambda x: manualgrad.max_pool2d(x, *options, **{"return_indices": True}),
        lambda x: F.max_pool2d(x, *options, **{"return_indices": True}),
        x,
        g=g,
    )
    assert torch.equal(ours["output"].signbit(), F.max_pool2d(x, *options).signbit())


def test_windows_of_padding_only_send_no_gradient() -> None:
    """A dilated window can skip a small image. PyTorch's backward then writes out of bounds and may crash."""
    x = whole_numbers(1, 2, 2, 2)
    ours = run_forward_backward(lambda x: manualgrad.max_pool2d(x, 2, 1, 1, 3), [x], torch.ones_like)
    assert torch.equal(ours["output"], F.max_pool2d(x, 2, 1, 1, 3))
    assert ours["output"].isneginf().all()
    assert not ours["gradient 0"].any()


def test_kernel_on_padding_only_gives_the_bias() -> None:
    x, w, b = whole_numbers(1, 2, 2, 2), whole_numbers(3, 2, 1, 1), whole_numbers(3)
    ours = assert_native(lambda *t: conv2d(*t, padding=2), lambda *t: F.conv2d(*t, padding=2), x, w, b)
    assert torch.equal(ours["output"][0, :, 0, 0], b)


ACTIVATIONS = {
    0: F.relu,
    0.5: lambda x: torch.maximum(x, torch.zeros_like(x)),
}


@pytest.mark.parametrize("subgradient", ACTIVATIONS)
def test_relu_has_native_values_and_gradients_of_special_numbers(subgradient: float) -> None:
    """An infinite or NaN gradient times a derivative of 0 is 0, not NaN."""
    numbers = torch.tensor([NAN, INF, -INF, 0, -0.0, 1, -1])
    x, g = torch.cartesian_prod(numbers, numbers).unbind(1)
    assert_native(lambda x: manualgrad.relu(x, subgradient=subgradient), ACTIVATIONS[subgradient], x, g=g)


@pytest.mark.parametrize("special", [NAN, INF])
def test_pooling_sends_an_infinite_gradient_to_one_pixel_and_0_to_others(special: float) -> None:
    x = torch.tensor([[[[1.0, 2], [4, 3]]]])
    ours = assert_native(manualgrad.max_pool2d, lambda x: F.max_pool2d(x, 2), x, g=torch.full((1, 1, 1, 1), special))
    expected = torch.tensor([[[[0.0, 0], [special, 0]]]])
    torch.testing.assert_close(ours["gradient 0"], expected, equal_nan=True, rtol=0, atol=0)


# -------------------------------------------------------------------------------------------- cross-entropy

LOGITS = WINDOWS | {
    "1e4": [1e4, -1e4, 0, 1e4],
    "3e38": [3e38, -3e38, 0, 3e38],
    "-3e38 alone": [-3e38, -3e38, -3e38, -3e38],
    "impossible class": [1, -INF, 2, 0],
    "one possible class": [-INF, 5, -INF, -INF],
}


@pytest.mark.parametrize("values", LOGITS.values(), ids=LOGITS)
def test_softmax_of_special_logits_is_native(values: list[float]) -> None:
    assert_native(
        manualgrad.softmax, lambda z: F.softmax(z, -1), torch.tensor(values)[None], g=torch.tensor([[1.0, 2, 3, 4]])
    )


@pytest.mark.parametrize("values", LOGITS.values(), ids=LOGITS)
@pytest.mark.parametrize("smoothing", [0, 0.1])
def test_cross_entropy_of_special_logits_is_native(values: list[float], smoothing: float) -> None:
    z, y = torch.tensor([values]).repeat(5, 1), torch.tensor([0, 1, 2, 3, -100])
    for reduction in ("none", "mean"):
        options = {"label_smoothing": smoothing, "reduction": reduction}
        assert_native(
            lambda z, options=options: manualgrad.softmax_cross_entropy(z, y, **options),
            lambda z, options=options: F.cross_entropy(z, y, **options),
            z,
        )


@pytest.mark.parametrize("scale", [1e4, 3e38])
def test_cross_entropy_of_huge_logits_is_exact(scale: float) -> None:
    z = torch.tensor([[scale, 0.0], [0.0, scale]])
    ours = run_forward_backward(
        lambda z: manualgrad.softmax_cross_entropy(z, torch.tensor([0, 0]), reduction="none"), [z], torch.ones_like
    )
    assert torch.equal(ours["output"], torch.tensor([0, scale]))
    assert torch.equal(ours["gradient 0"], torch.tensor([[0.0, 0], [-1, 1]]))


@pytest.mark.parametrize("smoothing", [0, 0.1])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weight", [None, torch.tensor([1.0, 2, 3])], ids=["plain", "weighted"])
def test_batch_of_ignored_examples_is_native(reduction: str, weight: Tensor | None, smoothing: float) -> None:
    """The mean over no examples is NaN, and its gradient is 0."""
    y = torch.tensor([-100, -100])
    options = {"weight": weight, "reduction": reduction, "label_smoothing": smoothing}
    assert_native(
        lambda z: manualgrad.softmax_cross_entropy(z, y, **options),
        lambda z: F.cross_entropy(z, y, **options),
        torch.randn(2, 3),
    )


@SPECIAL
def test_ignored_example_gets_gradient_0_from_any_gradient(special: float) -> None:
    y = torch.tensor([1, -100])
    assert_native(
        lambda z: manualgrad.softmax_cross_entropy(z, y, reduction="none"),
        lambda z: F.cross_entropy(z, y, reduction="none"),
        torch.randn(2, 3),
        g=torch.tensor([1, special]),
    )
