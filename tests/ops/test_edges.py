"""Edge cases as in PyTorch: NaN, infinities, -0, empty batches, huge logits, memory layouts, in-place changes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import manualgrad
from tests.conftest import run_forward_backward

INF, NAN = math.inf, math.nan
SPECIAL = pytest.mark.parametrize("special", [NAN, INF, -INF], ids=str)


def conv2d(x: Tensor, w: Tensor, b: Tensor | None = None, **options: Any) -> Tensor:
    return manualgrad.conv2d(x, w, b, **options, flip_kernel=False)


def whole_numbers(*shape: int) -> Tensor:
    return torch.randint(-3, 4, shape).float()


def assert_native(
    ours: Callable[..., Any], native: Callable[..., Any], *inputs: Tensor, g: Tensor | None = None
) -> dict[str, Tensor]:
    """Assert that values and gradients equal native ones, NaN included, and return them."""
    results = [
        run_forward_backward(function, inputs, lambda output: torch.ones_like(output) if g is None else g)
        for function in (ours, native)
    ]
    torch.testing.assert_close(*results, equal_nan=True)
    return results[0]


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


# --------------------------------------------------------------------------------- empty, small, unreached

EMPTY = {
    "conv2d": (conv2d, F.conv2d, (0, 2, 5, 6), (3, 2, 2, 3), (3,)),
    "max_pool2d": (manualgrad.max_pool2d, lambda x: F.max_pool2d(x, 2), (0, 2, 5, 6)),
    "flatten": (manualgrad.flatten, lambda x: x.permute(0, 2, 3, 1).flatten(1), (0, 2, 5, 6)),
    "dense": (manualgrad.dense, F.linear, (0, 5), (3, 5), (3,)),
    "relu": (manualgrad.relu, F.relu, (0, 5)),
    "softmax": (manualgrad.softmax, lambda z: F.softmax(z, -1), (0, 5)),
    "softmax_cross_entropy": (
        lambda z: manualgrad.softmax_cross_entropy(z, z.argmax(1)),
        lambda z: F.cross_entropy(z, z.argmax(1)),
        (0, 5),
    ),
    "softmax_cross_entropy, sum": (
        lambda z, y: manualgrad.softmax_cross_entropy(z, y, reduction="sum"),
        lambda z, y: F.cross_entropy(z, y, reduction="sum"),
        (0, 5),
        (0, 5),
    ),
}


@pytest.mark.parametrize("case", EMPTY.values(), ids=EMPTY)
def test_empty_batch_gives_empty_results_and_zero_weight_gradients(case: tuple[Any, ...], device: str) -> None:
    ours, native, *shapes = case
    results = assert_native(ours, native, *(torch.ones(shape, device=device) for shape in shapes))
    gradients = [results[f"gradient {n}"] for n in range(len(shapes))]
    assert [tuple(gradient.shape) for gradient in gradients] == shapes
    assert not any(gradient.any() for gradient in gradients)


def test_one_pixel_of_one_example() -> None:
    x, w = torch.full((1, 1, 1, 1), 3.0, dtype=torch.float64), torch.full((1, 1, 1, 1), 2.0, dtype=torch.float64)
    ours = assert_native(conv2d, F.conv2d, x, w, torch.ones(1, dtype=torch.float64))
    assert [value.item() for value in ours.values()] == [7, 2, 3, 1]
    assert_native(lambda x: manualgrad.max_pool2d(x, 1), lambda x: F.max_pool2d(x, 1), x)
    assert_native(manualgrad.flatten, lambda x: x.flatten(1), x)


@pytest.mark.parametrize("g", [1.0, INF, NAN])
def test_rows_and_columns_that_no_window_reaches_get_0(g: float) -> None:
    """The gradient is 0 even for g = ∞ or NaN, and a NaN in such a row changes no value."""
    x = torch.ones(1, 2, 8, 9)
    x[:, :, [2, 6, 7]], x[..., [3, 4, 8]] = NAN, NAN  # kernels of 2x3 with strides (4, 5) cover rows 0, 1, 4, 5
    for function, inputs in (
        (lambda x, w: conv2d(x, w, stride=(4, 5)), (x, torch.ones(3, 2, 2, 3))),
        (lambda x: manualgrad.max_pool2d(x, (2, 3), (4, 5)), (x,)),
    ):
        ours = run_forward_backward(function, inputs, lambda output: torch.full_like(output, g))
        assert ours["output"].isfinite().all()
        gradient = ours["gradient 0"]
        assert not gradient[:, :, [2, 3, 6, 7]].any()
        assert not gradient[..., [3, 4, 8]].any()
        assert gradient[:, :, [0, 1]].any()


@pytest.mark.parametrize("kernel", [(17, 17), (1, 300), (16, 16), (257, 1)], ids=str)
@pytest.mark.parametrize("position", ["first", "255", "256", "last"])
def test_pooling_window_of_many_pixels_finds_each(kernel: tuple[int, int], position: str) -> None:
    """An index above 255 does not fit into one byte."""
    count = kernel[0] * kernel[1]
    index = {"first": 0, "255": 255, "256": min(256, count - 1), "last": count - 1}[position]
    x = torch.zeros(1, 1, *kernel)
    x.view(-1)[index] = 5
    ours = assert_native(
        lambda x: manualgrad.max_pool2d(x, kernel, return_indices=True),
        lambda x: F.max_pool2d(x, kernel, return_indices=True),
        x,
    )
    assert ours["output 1"].item() == index
    assert torch.equal(ours["gradient 0"], x / 5)


# --------------------------------------------------------------------------------------------- layouts


def with_gaps(x: Tensor) -> Tensor:
    wide = torch.full((*x.shape[:-1], 2 * x.shape[-1]), NAN)
    wide[..., ::2] = x
    return wide[..., ::2]


LAYOUTS = {
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x,
    "transposed": lambda x: x.mT.contiguous().mT if x.dim() > 1 else x,
    "reversed dimensions": lambda x: x.permute(*range(x.dim())[::-1]).contiguous().permute(*range(x.dim())[::-1]),
    "gaps in memory": lambda x: with_gaps(x) if x.dim() else x,
    "an offset": lambda x: torch.cat([torch.full((1,), NAN), x.flatten()])[1:].view_as(x),
    "one row expanded": lambda x: x[:1].expand_as(x) if x.dim() else x,
    "one number expanded": lambda x: torch.tensor(2.0).expand_as(x),
}
OPERATIONS: dict[str, tuple[Any, ...]] = {
    "conv2d": (
        lambda *t: conv2d(*t, stride=(2, 1), padding=1),
        lambda *t: F.conv2d(*t, stride=(2, 1), padding=1),
        (2, 2, 5, 6),
        (4, 2, 3, 2),
        (4,),
    ),
    "conv2d, groups, dilation": (
        lambda *t: conv2d(*t, dilation=2, groups=2),
        lambda *t: F.conv2d(*t, dilation=2, groups=2),
        (2, 4, 7, 6),
        (4, 2, 3, 2),
    ),
    "conv2d of one channel": (conv2d, F.conv2d, (3, 1, 9, 20), (2, 1, 2, 2)),
    "max_pool2d": (lambda x: manualgrad.max_pool2d(x, 3, 2, 1), lambda x: F.max_pool2d(x, 3, 2, 1), (2, 4, 6, 8)),
    "flatten": (manualgrad.flatten, lambda x: x.permute(0, 2, 3, 1).flatten(1), (2, 3, 4, 5)),
    "dense": (manualgrad.dense, F.linear, (6, 5), (4, 5), (4,)),
    "dense, images": (manualgrad.dense, F.linear, (2, 3, 6, 5), (4, 5), (4,)),
    "relu": (lambda x: manualgrad.relu(x, subgradient=0), F.relu, (2, 3, 4, 5)),
    "softmax": (lambda z: manualgrad.softmax(z, 1), lambda z: F.softmax(z, 1), (2, 3, 4, 5)),
    "softmax_cross_entropy": (
        lambda z, y: manualgrad.softmax_cross_entropy(z, y, reduction="none"),
        lambda z, y: F.cross_entropy(z, y, reduction="none"),
        (2, 3, 4, 5),
        (2, 3, 4, 5),
    ),
}
every_operation = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)


@every_operation
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_layout_of_inputs_and_gradient_changes_nothing(
    operation: tuple[Any, ...], layout: Callable[[Tensor], Tensor]
) -> None:
    """Sums and maxima of whole numbers are exact; softmax and its loss are compared to a tolerance."""
    ours, native, *shapes = operation
    inputs = [layout(whole_numbers(*shape)) for shape in shapes]
    g = layout(whole_numbers(*native(*inputs).shape))
    results = assert_native(ours, native, *inputs, g=g)
    plain = run_forward_backward(ours, [x.contiguous() for x in inputs], lambda _: g.contiguous())
    for name in results:
        torch.testing.assert_close(results[name], plain[name], rtol=1e-6, atol=1e-6)


# --------------------------------------------------------------------------------------------- in-place


@every_operation
def test_inputs_and_gradient_are_not_modified(operation: tuple[Any, ...]) -> None:
    ours, native, *shapes = operation
    inputs = [whole_numbers(*shape) for shape in shapes]
    g = whole_numbers(*native(*inputs).shape)
    copies = [x.clone() for x in (*inputs, g)]
    run_forward_backward(ours, inputs, lambda _: g)
    assert all(torch.equal(x, copy) for x, copy in zip((*inputs, g), copies, strict=True))


X, W, B = (4, 2, 5, 6), (4, 2, 3, 2), (4,)
LABELS = torch.tensor([0, 2, 1, 1])
# function, shapes of its inputs, indices of the inputs that require a gradient, index of the tensor changed in place
NEEDED_BY_BACKWARD = {
    "conv2d: input for the kernel's gradient": (conv2d, (X, W, B), (1,), 0),
    "conv2d: kernel for the input's gradient": (conv2d, (X, W, B), (0,), 1),
    "dense: input for the weight's gradient": (manualgrad.dense, ((4, 5), (3, 5), (3,)), (1,), 0),
    "dense: weight for the input's gradient": (manualgrad.dense, ((4, 5), (3, 5), (3,)), (0,), 1),
    "relu: input": (manualgrad.relu, (X,), (0,), 0),
    "softmax: output": (manualgrad.softmax, ((4, 5),), (0,), "output"),
    "softmax_cross_entropy: logits": (
        lambda z: manualgrad.softmax_cross_entropy(z, LABELS),
        ((4, 3),),
        (0,),
        0,
    ),
    "softmax_cross_entropy: logits for the target's gradient": (
        manualgrad.softmax_cross_entropy,
        ((4, 3), (4, 3)),
        (1,),
        0,
    ),
}
NOT_NEEDED_BY_BACKWARD = {
    "conv2d: input for its own gradient": (conv2d, (X, W, B), (0,), 0),
    "conv2d: kernel for its own gradient": (conv2d, (X, W, B), (1,), 1),
    "conv2d: bias": (conv2d, (X, W, B), (0, 1, 2), 2),
    "conv2d: all for the bias's gradient": (conv2d, (X, W, B), (2,), 0),
    "conv2d: output": (conv2d, (X, W, B), (0, 1, 2), "output"),
    "max_pool2d: input": (manualgrad.max_pool2d, (X,), (0,), 0),
    "max_pool2d: output": (manualgrad.max_pool2d, (X,), (0,), "output"),
    "flatten: input": (lambda x: manualgrad.flatten(x).clone(), (X,), (0,), 0),
    "flatten: output": (manualgrad.flatten, (X,), (0,), "output"),
    "dense: input for its own gradient": (manualgrad.dense, ((4, 5), (3, 5), (3,)), (0,), 0),
    "dense: bias": (manualgrad.dense, ((4, 5), (3, 5), (3,)), (0, 1, 2), 2),
    "dense: output": (manualgrad.dense, ((4, 5), (3, 5), (3,)), (0, 1, 2), "output"),
    "relu: output": (manualgrad.relu, (X,), (0,), "output"),
    "softmax: input": (manualgrad.softmax, ((4, 5),), (0,), 0),
    "softmax_cross_entropy: target for its own gradient": (
        manualgrad.softmax_cross_entropy,
        ((4, 3), (4, 3)),
        (1,),
        1,
    ),
}


def gradients_after_change(
    function: Callable[..., Tensor],
    shapes: tuple[Any, ...],
    requiring_grad: tuple[int, ...],
    changed: int | str,
    change: bool,
) -> list[Tensor]:
    """Gradients of the inputs ``requiring_grad``; ``changed`` is changed in place between forward and backward.

    Inputs are the doubled leaves, since a leaf that requires a gradient must not be changed in place.
    """
    torch.manual_seed(1)
    leaves = [whole_numbers(*shape).requires_grad_(n in requiring_grad) for n, shape in enumerate(shapes)]
    inputs = [leaf * 2 for leaf in leaves]
    output = function(*inputs)
    if change:
        with torch.no_grad() if changed != "output" else torch.enable_grad():
            (output if changed == "output" else inputs[changed]).add_(1)
    output.sum().backward()
    return [leaves[n].grad for n in requiring_grad]


@pytest.mark.parametrize("case", NEEDED_BY_BACKWARD.values(), ids=NEEDED_BY_BACKWARD)
def test_in_place_change_of_what_backward_needs_raises(case: tuple[Any, ...]) -> None:
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradients_after_change(*case, change=True)


@pytest.mark.parametrize("case", NOT_NEEDED_BY_BACKWARD.values(), ids=NOT_NEEDED_BY_BACKWARD)
def test_in_place_change_of_what_backward_does_not_need_is_harmless(case: tuple[Any, ...]) -> None:
    changed, unchanged = (gradients_after_change(*case, change=change) for change in (True, False))
    assert all(torch.equal(a, b) for a, b in zip(changed, unchanged, strict=True))
    assert any(gradient.any() for gradient in changed)


def test_flatten_is_a_view_of_channels_last_memory() -> None:
    x = torch.randn(X).contiguous(memory_format=torch.channels_last)
    assert manualgrad.flatten(x).data_ptr() == x.data_ptr()
    with pytest.raises(RuntimeError, match="is a view and is being modified inplace"):
        manualgrad.flatten(x.requires_grad_()).add_(1)
