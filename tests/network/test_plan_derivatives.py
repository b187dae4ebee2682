"""Promise: the cost by a plan has the derivatives of its layers, again and again, and under transforms."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from manualgrad import DocumentCNN
from manualgrad.cpu import team
from tests.network.plan_models import MARKS, cost_from_logits, make_model

pytestmark = MARKS


@pytest.mark.parametrize("cost", [DocumentCNN.cost, cost_from_logits])
def test_second_derivatives_equal_those_of_the_layers(cost):
    model, x, labels = make_model(3, hidden=(20,))
    unfused, *_ = make_model(3, hidden=(20,), fused=False)
    second = []
    for m in (model, unfused):
        m.load_state_dict(model.state_dict())
        parameters = list(m.parameters())
        first = torch.autograd.grad(cost(m, x, labels), parameters, create_graph=True)
        second.append(torch.autograd.grad(sum(g.square().sum() for g in first), parameters))
    for actual, expected in zip(*second, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("cost", [DocumentCNN.cost, cost_from_logits])
def test_backward_runs_twice_and_refuses_modified_parameters(cost):
    model, x, labels = make_model()
    cost = cost(model, x, labels)
    first = torch.autograd.grad(cost, list(model.parameters()), retain_graph=True)
    second = torch.autograd.grad(cost, list(model.parameters()), retain_graph=True)
    assert all(map(torch.equal, first, second))
    with torch.no_grad():
        model.dense2.bias.add_(1)  # first derivatives do not need a bias
    assert torch.equal(torch.autograd.grad(cost, model.dense2.weight, retain_graph=True)[0], first[4])
    with pytest.raises(RuntimeError, match="a bias needed for derivatives was modified by an inplace operation"):
        torch.autograd.grad(cost, model.dense2.weight, create_graph=True)
    with torch.no_grad():
        model.dense2.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        cost.backward()


@pytest.mark.parametrize(("shape", "message"), [
    (torch.Size([4, 1, 28, 28]), r"x to be float32 of shape \(4, 1, 28, 28\), got float32 of shape \(4, 1, 28, 27\)"),
    (torch.Size([128, 512]), r"weight 2 to be contiguous float32 of shape \(128, 512\), got .* \(128, 511\)"),
    (None, "the workspace to be contiguous uint8"),
], ids=["x", "weight", "workspace"])  # fmt: skip
def test_modified_saved_tensor_raises(shape, message):
    """Saved-tensor hooks may return anything; the shape ``None`` stands for the plan's workspace."""
    model, x, _ = make_model()

    def shorten(t):
        is_chosen = t.dtype is torch.uint8 if shape is None else t.shape == shape
        return t[..., :-1].clone() if is_chosen else t

    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, shorten):
        z = model(x)
    with pytest.raises(ValueError, match=f"modified between forward and backward: expected {message}"):
        z.sum().backward()


def test_cost_and_gradients_equal_those_of_the_logits():
    model, x, labels = make_model(20)
    parameters = list(model.parameters())
    for factor in (1.0, -2.5, 0.0, torch.inf, torch.nan):
        costs = model.cost(x, labels), cost_from_logits(model, x, labels)
        actual, expected = (torch.autograd.grad(cost * factor, parameters) for cost in costs)
        torch.testing.assert_close(*costs)
        for a, b in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, equal_nan=True)


def test_returned_gradients_belong_to_the_caller():
    model, x, labels = make_model()
    parameters, cost = list(model.parameters()), model.cost(x, labels)
    first = torch.autograd.grad(cost, parameters, retain_graph=True)
    first_copies = [g.clone() for g in first]
    for g in first:
        g.zero_()
    cost.backward(retain_graph=True)
    cost.backward()
    for p, g in zip(parameters, first_copies, strict=True):
        assert torch.equal(p.grad, 2 * g)


def test_cost_has_batched_gradients():
    model, x, labels = make_model()
    cost, parameters = model.cost(x, labels), list(model.parameters())
    single = torch.autograd.grad(cost, parameters, retain_graph=True)
    batched = torch.autograd.grad(cost, parameters, torch.tensor([1.0, 3.0]), is_grads_batched=True)
    for g, g_batch in zip(single, batched, strict=True):
        torch.testing.assert_close(g_batch, torch.stack((g, 3 * g)), rtol=1e-4, atol=1e-6)


def test_labels_may_change_after_forward():
    model, x, labels = make_model()
    expected = torch.autograd.grad(cost_from_logits(model, x, labels), model.dense3.weight)[0]
    with torch.inference_mode():
        inference_labels = labels.clone()
    model.cost(x, inference_labels).backward()
    cost = model.cost(x, labels)
    labels.add_(1)
    torch.testing.assert_close(
        torch.autograd.grad(cost, model.dense3.weight, create_graph=True)[0].detach(), expected
    )
    torch.testing.assert_close(model.dense3.weight.grad, expected)


def test_copied_and_pickled_models_compute_the_same():
    model, x, _ = make_model()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), model(x))


def test_forked_child_computes_the_same_bits_on_one_thread(monkeypatch):
    """A forked child has none of torch's threads."""
    model, x, _ = make_model(64)
    torch.set_num_threads(2)
    before = model(x)
    monkeypatch.setattr(team, "_forked", True)
    assert torch.equal(model(x), before)
