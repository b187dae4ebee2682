"""Cross-entropy's kernels for CUDA equal their formulas: labels with all options, and probabilities."""

from __future__ import annotations

import itertools

import pytest
import torch

import manualgrad as mg
from manualgrad import tensor_checks
from manualgrad.cuda import rows
from manualgrad.ops.softmax_cross_entropy import cross_entropy_backward, cross_entropy_forward

INF = float("inf")


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch) -> None:
    """Few numbers a tile, so that small tensors have many tiles; and no value is read, as on a GPU."""
    monkeypatch.setattr(rows, "TILE", 32)
    monkeypatch.setattr(rows, "MAX_BLOCK", 16)
    monkeypatch.setattr(rows, "MAX_STRIDED_BLOCK", 4)
    monkeypatch.setattr(tensor_checks, "HOST_DEVICES", ())


def run(device: str, z: torch.Tensor, labels: torch.Tensor, weight, create_graph: bool = False, **options):
    """Loss and gradient of ``z`` for a gradient of the loss that is not 1."""
    z = z.detach().clone(memory_format=torch.preserve_format).to(device).requires_grad_()
    weight = None if weight is None else weight.to(device, z.dtype)
    loss = mg.softmax_cross_entropy(z, labels.to(device), weight, **options)
    g = torch.linspace(0.5, 2, loss.numel(), device=device).to(loss.dtype).view(loss.shape)
    (grad,) = torch.autograd.grad(loss, z, g, create_graph=create_graph)
    return loss, grad


# shape, weights, smoothing: one program, more classes than a tile, more rows than a program, planes of classes
CASES = [
    ((3, 10), False, 0.0, "mean"),
    ((3, 20), True, 0.1, "mean"),
    ((30, 2), True, 0.0, "sum"),
    ((2, 5, 2, 3), False, 0.2, "none"),
]


@pytest.mark.parametrize(("shape", "weighted", "label_smoothing", "reduction"), CASES, ids=str)
def test_labels_equal_the_formula(kernel_device, launches, shape, weighted, label_smoothing, reduction) -> None:
    z = (16 * torch.randn(shape)).round() / 4
    labels = torch.randint(shape[1], (shape[0], *shape[2:]))
    labels[0] = -3
    weight = torch.rand(shape[1]).add(0.5) if weighted else None
    options = {"ignore_index": -3, "reduction": reduction, "label_smoothing": label_smoothing}
    loss, grad = run(kernel_device, z, labels, weight, **options)
    names = set(launches)
    expected, expected_grad = run(kernel_device, z.double(), labels, weight, **options)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(grad.double(), expected_grad, rtol=1e-5, atol=1e-7)
    forward, backward = "label_cross_entropy_forward", "label_cross_entropy_backward"
    assert names - {"add_partial_sums"} == {forward, backward}
    assert len(launches) == (3 if "add_partial_sums" in names else 2)
    differentiable = run(kernel_device, z, labels, weight, create_graph=True, **options)[1]
    torch.testing.assert_close(differentiable, grad, rtol=1e-5, atol=1e-6)


def test_labels_in_other_memory_orders_and_dtypes(kernel_device, launches, monkeypatch) -> None:
    z = torch.randn(2, 5, 3, 4).to(memory_format=torch.channels_last)
    labels = torch.randint(5, (2, 4, 3)).transpose(1, 2).int()
    for wide in (False, True):
        monkeypatch.setattr(rows, "needs_64_bits", lambda *tensors, wide=wide: wide)
        loss, grad = run(kernel_device, z, labels, None)
        expected, expected_grad = run(kernel_device, z.double(), labels, None)
        torch.testing.assert_close((loss.double(), grad.double()), (expected, expected_grad), rtol=1e-5, atol=1e-7)
        assert grad.stride() == z.stride()
    half = torch.tensor([[1.0, 2.0, 3.0], [0.5, -1.0, 0.25]], dtype=torch.bfloat16)
    loss, grad = run(kernel_device, half, torch.tensor([2, 1]), None)
    expected, expected_grad = run(kernel_device, half.double(), torch.tensor([2, 1]), None)
    assert loss.dtype == grad.dtype == torch.bfloat16
    torch.testing.assert_close((loss.double(), grad.double()), (expected, expected_grad), rtol=2**-7, atol=1e-3)
    transposed, few = torch.randn(2, 3, 4, 5).permute(0, 3, 2, 1), torch.randint(5, (2, 4, 3))
    actual, expected = run(kernel_device, transposed, few, None), run(kernel_device, transposed.double(), few, None)
    torch.testing.assert_close([t.double() for t in actual], list(expected), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("weighted", "label_smoothing"), [(False, 0.0), (True, 0.0), (True, 0.5)])
def test_labels_that_count_not_or_are_no_class(kernel_device, launches, weighted, label_smoothing) -> None:
    """A label that is no class has a loss and gradients of NaN, without a look at its value."""
    logits = torch.tensor([[1.0, -INF, 0.0], [INF, 0.0, 1.0], [-INF] * 3, [2.0, 1.0, 0.0]])
    weight = torch.tensor([1.0, 0.0, 2.0]) if weighted else None
    rows_of_z, labels = zip(*itertools.product(logits, (0, 1, 2, -100, 7)), strict=True)
    z, labels = torch.stack(rows_of_z), torch.tensor(labels)
    options = {"reduction": "none", "label_smoothing": label_smoothing}
    actual, expected = (run(kernel_device, t, labels, weight, **options) for t in (z, z.double()))
    torch.testing.assert_close([t.double() for t in actual], list(expected), equal_nan=True, rtol=1e-6, atol=1e-6)
    z = logits[3:].expand(3, 3)
    for labels in ([0, -100, 2], [0, -100, 7], [-100, -100, -100], [1, 1, 1]):
        actual, expected = (run(kernel_device, t, torch.tensor(labels), weight) for t in (z, z.double()))
        torch.testing.assert_close([t.double() for t in actual], list(expected), equal_nan=True, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("shape", [(3, 40), (2, 5, 7)], ids=str)
def test_probabilities_equal_the_formula(kernel_device, launches, shape, reduction) -> None:
    z = ((16 * torch.randn(shape)).round() / 4).to(kernel_device).requires_grad_()
    y = torch.rand(shape).mul(4).floor().to(kernel_device)
    y[0] = 0
    loss = mg.softmax_cross_entropy(z, y, reduction=reduction)
    (grad,) = torch.autograd.grad(loss.sum(), z)
    double = z.detach().double().requires_grad_()
    expected = mg.softmax_cross_entropy(double, y.double(), reduction=reduction)
    (expected_grad,) = torch.autograd.grad(expected.sum(), double)
    torch.testing.assert_close((loss.double(), grad.double()), (expected, expected_grad), rtol=1e-5, atol=1e-6)
    assert launches[0] == "cross_entropy_forward" and launches[-1] == "cross_entropy_backward"
    infinite = torch.tensor([[0.0, -INF], [INF, 1.0]], device=kernel_device)
    y, g = (
        torch.tensor([[1.0, 0.0], [0.0, 0.0]], device=kernel_device),
        torch.tensor([1.0, INF], device=kernel_device),
    )
    for formula, arguments in (
        (cross_entropy_forward, (infinite, y, False)),
        (cross_entropy_backward, (g, infinite, y)),
    ):
        expected = formula.__wrapped__(*(a.double() if isinstance(a, torch.Tensor) else a for a in arguments))
        torch.testing.assert_close(formula(*arguments).double(), expected, equal_nan=True)
