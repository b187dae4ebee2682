"""Promise: the memory layout of inputs and gradients changes nothing, and changed inputs are noticed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import manualgrad
from tests.conftest import run_forward_backward
from tests.ops.native_values import NAN, assert_native, conv2d, whole_numbers

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
