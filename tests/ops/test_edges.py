"""Promise: empty batches, single pixels, and pixels that no window reaches are handled as in PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

import manualgrad
from tests.conftest import run_forward_backward
from tests.ops.native_values import INF, NAN, assert_native, conv2d

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
