"""Promise: softmax and cross-entropy by vectors equal the formulas for any rows, classes, threads and numbers."""

from __future__ import annotations

import math
from functools import lru_cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

import manualgrad as mg
from manualgrad import kernels
from manualgrad.cpu import jit, row_kernels
from manualgrad.dispatch import by_kernel
from manualgrad.ops.softmax import softmax_backward, softmax_forward
from manualgrad.ops.softmax_cross_entropy import cross_entropy_backward, cross_entropy_forward
from manualgrad.ops.targets import targets_from_labels

pytestmark = pytest.mark.skipif(kernels.available().instructions is None, reason=str(kernels.available()))
EPS = torch.finfo(torch.float32).eps
SPECIAL = [0.0, -0.0, math.inf, -math.inf, math.nan, -300.0, 88.0, 3e38, -3e38]


@pytest.fixture(autouse=True)
def vectors_and_threads_for_few_logits(monkeypatch):
    monkeypatch.setattr(row_kernels, "MAX_NUMEL", 0)
    monkeypatch.setattr(row_kernels, "MIN_GRAD_NUMEL", 0)
    monkeypatch.setattr(row_kernels, "MIN_CLASSES", 1)
    monkeypatch.setattr(row_kernels, "NUMEL_PER_TASK", 1)
    for name in ("_label_loss_program", "_label_loss_grad_program"):  # without programs of the sizes above
        monkeypatch.setattr(row_kernels, name, lru_cache(getattr(row_kernels, name).__wrapped__))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    kernels.choose("auto")


@st.composite
def problems(draw):
    """Logits with special values or without, labels of which some are ignored, and a reduction."""
    rows, classes = draw(st.integers(1, 9)), draw(st.integers(1, 150))
    torch.manual_seed(draw(st.integers(0, 2**20)))
    z = draw(st.sampled_from([0.1, 3, 30])) * torch.randn(rows, classes)
    labels = torch.randint(classes, (rows,))
    if draw(st.booleans()):
        labels[torch.rand(rows) < 0.3] = -100
    for value in draw(st.lists(st.sampled_from(SPECIAL), max_size=3)):
        z[draw(st.integers(0, rows - 1)), draw(st.integers(0, classes - 1))] = value
    torch.set_num_threads(draw(st.integers(1, 4)))
    kernels.choose(draw(st.sampled_from(jit.instruction_sets())))
    return z, labels, draw(st.sampled_from(["mean", "sum", "none"]))


def assert_as_exact(ours, formula, exact, largest_term):
    """In each row the error is at most 2 x the formula's + 2 ulp of the largest term, or of the largest result."""
    assert torch.equal(ours.isnan(), formula.isnan())
    assert torch.equal(ours.isinf(), formula.isinf())
    ours, formula, exact, largest_term = (
        t.double().nan_to_num(0, 0, 0).abs_() if t is largest_term else t.double().nan_to_num(0, 0, 0)
        for t in (ours, formula, exact, largest_term)
    )
    ulp = EPS * torch.maximum(exact.abs(), largest_term).amax(-1).clamp(min=1e-37)
    assert ((ours - exact).abs().amax(-1) <= 2 * (formula - exact).abs().amax(-1) + 2 * ulp).all()


@settings(max_examples=60, deadline=None)
@given(problems(), st.integers(0, 3))
def test_softmax(problem, seed):
    z, _, _ = problem
    ours = by_kernel("softmax_forward", z, -1)
    formula = softmax_forward.__wrapped__(z, -1)
    assert_as_exact(ours, formula, softmax_forward.__wrapped__(z.double(), -1), torch.zeros(z.shape))
    g = torch.randn(z.shape, generator=torch.Generator().manual_seed(seed))
    grad, expected = by_kernel("softmax_backward", g, formula, 1), softmax_backward.__wrapped__(g, formula, 1)
    largest_term = formula * (g.abs() + (g * formula).abs().sum(1, keepdim=True))
    assert_as_exact(grad, expected, softmax_backward.__wrapped__(g.double(), formula.double(), 1), largest_term)


@settings(max_examples=80, deadline=None)
@given(problems(), st.sampled_from([1.0, 0.5, 0.0, math.inf, math.nan]))
def test_cross_entropy_of_labels(problem, last_g):
    z, labels, reduction = problem
    result = by_kernel("cross_entropy_from_labels", z, labels, None, -100, reduction, 0.0)
    if (labels == -100).all():
        assert result is None
        return
    loss, grad, row_stats, target = result
    assert grad is None
    y, _ = targets_from_labels.__wrapped__(labels, z, None, z.shape[1], -100, reduction == "mean", 0.0)
    summed = reduction != "none"
    formula = cross_entropy_forward.__wrapped__(z, y, summed)
    assert loss.shape == formula.shape
    exact_y = targets_from_labels.__wrapped__(labels, z.double(), None, z.shape[1], -100, reduction == "mean", 0.0)[0]
    # z − max z rounds to eps |z|; a sum over rows adds these errors
    tolerance_of_log = EPS * (z.nan_to_num(0, 0, 0).abs().max().item() + 10) * len(z)
    exact = cross_entropy_forward.__wrapped__(z.double(), exact_y, summed)
    same = (loss == formula) | (loss.isnan() & formula.isnan()) | ((loss - exact).abs() <= tolerance_of_log)
    assert same.all()
    g = torch.randn(len(z)) if reduction == "none" else torch.randn(())
    g.view(-1)[-1] = last_g
    ours = by_kernel("cross_entropy_from_labels_backward", g, z, labels, None, row_stats, -100, 0.0, target)
    formula = cross_entropy_backward.__wrapped__(g, z, y)
    exact = cross_entropy_backward.__wrapped__(g.double(), z.double(), exact_y)
    # A probability that float32 holds as a subnormal number may round to 0, and 0·inf is NaN where tiny·inf is inf.
    probs = z.double().softmax(1)
    is_subnormal = (probs > 1e-46) & (probs < torch.finfo(torch.float32).tiny)
    ours = torch.where(is_subnormal & g.isinf().reshape(-1, 1), formula, ours)
    assert_as_exact(ours, formula, exact, g.reshape(-1, 1) * y)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_all_derivatives_of_the_public_function(reduction):
    z, labels = torch.randn(6, 37, requires_grad=True), torch.randint(37, (6,))
    labels[2] = -100
    for create_graph in (False, True):  # with True the formulas compute the gradient
        grads = []
        for function in (mg.softmax_cross_entropy, cross_entropy):
            loss = function(z, labels, reduction=reduction)
            (grad,) = torch.autograd.grad(loss.sum(), z, create_graph=create_graph)  # g is expanded for "none"
            grads.append([loss, grad] + (list(torch.autograd.grad(grad.square().sum(), z)) if create_graph else []))
        torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-6)
    loss = mg.softmax_cross_entropy(z, labels, reduction=reduction).sum()
    (expected,) = torch.autograd.grad(loss, z, retain_graph=True)
    kernels.choose("off")
    torch.testing.assert_close(torch.autograd.grad(loss, z)[0], expected)


def test_invalid_labels_and_unsupported_tensors():
    z = torch.randn(4, 40)
    for label in (40, -1, 2**40, -(2**40)):
        with pytest.raises(IndexError, match=f"between 0 and 39, got {label}"):
            mg.softmax_cross_entropy(z, torch.tensor([0, 1, label, 2]))
    labels = torch.zeros(4, dtype=torch.int64)
    for other in (z.double(), z.t(), z[:, ::2], z[:0], z.expand(2, 4, 40)):
        assert by_kernel("cross_entropy_from_labels", other, labels[: len(other)], None, -100, "sum", 0.0) is None
        assert by_kernel("softmax_backward", other, other, -1) is None
    assert by_kernel("cross_entropy_from_labels", z, labels.int(), None, -100, "sum", 0.0) is None


def test_the_loss_saves_no_more_than_native():
    z, labels = torch.randn(64, 1000, requires_grad=True), torch.randint(1000, (64,))

    def saved_bytes(function):
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            function(z, labels)
        return sum({t.data_ptr(): t.untyped_storage().nbytes() for t in saved}.values())

    assert saved_bytes(mg.softmax_cross_entropy) <= saved_bytes(cross_entropy) + 64 * 8  # two numbers of each row
