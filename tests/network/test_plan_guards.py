"""Promise: a model that was changed, hooked or patched runs layer by layer, as if there were no plan."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from manualgrad import DocumentCNN, backprop, softmax_cross_entropy
from manualgrad import nn as ours
from manualgrad.network.plan import Plan
from tests.network.plan_models import MARKS, ROOT, cost_from_logits, gradients, make_model, without_kernels

pytestmark = MARKS


@pytest.fixture
def plan_calls(monkeypatch) -> list[str]:
    """Names of the methods of Plan that ran."""
    calls: list[str] = []
    for name in ("forward", "backward", "loss_and_grads"):
        original = getattr(Plan, name)

        def recorded(*arguments, original=original, name=name, **options):
            calls.append(name)
            return original(*arguments, **options)

        monkeypatch.setattr(Plan, name, recorded)
    return calls


def test_plan_runs_in_training_and_inference(plan_calls):
    model, x, labels = make_model()
    model.cost(x, labels).backward()
    assert plan_calls == ["loss_and_grads"]
    softmax_cross_entropy(model(x), labels).backward()
    assert plan_calls == ["loss_and_grads", "forward", "backward"]
    with torch.no_grad():
        model.cost(x, labels)
        model.probabilities(x)
    assert plan_calls == ["loss_and_grads", "forward", "backward", "forward", "forward"], "gradients are off"


def test_cost_and_probabilities_run_one_program(plan_calls):
    model, x, labels = make_model()
    cost, probabilities = model.cost_and_probabilities(x, labels)
    assert plan_calls == ["loss_and_grads"] and not probabilities.requires_grad
    expected = model.probabilities(x)
    torch.testing.assert_close(probabilities, expected.detach())
    model.relu2.register_forward_hook(lambda *_: None)
    again, same = model.cost_and_probabilities(x, labels)
    assert plan_calls == ["loss_and_grads", "forward"] and again.requires_grad and not same.requires_grad
    torch.testing.assert_close((again, same), (cost, probabilities))


def replace_layer(model):
    model.relu2 = nn.Identity()


def change_layer_class(model):
    model.conv0 = copy.deepcopy(model.conv0)
    model.conv0.__class__ = type("Subclass", (type(model.conv0),), {})


def patch_layer_forward(model):
    model.dense2.forward = lambda x: x[:, :128] * 2


def add_forward_hook(model):
    model.pool = model.conv1.register_forward_hook(lambda layer, inputs, output: output * 2)


def add_backward_hook(model):
    model.dense3.register_full_backward_hook(lambda layer, grad_input, grad_output: None)


def parametrize_weight(model):
    parametrize.register_parametrization(model.dense3, "weight", nn.Softplus())


CHANGES = {
    "replaced layer": replace_layer,
    "subclass": change_layer_class,
    "patched forward": patch_layer_forward,
    "forward hook": add_forward_hook,
    "backward hook": add_backward_hook,
    "parametrization": parametrize_weight,
    "stride": lambda model: setattr(model.conv1, "stride", (1, 2)),
    "padding": lambda model: setattr(model.conv0, "padding", (1, 1)),
    "subgradient": lambda model: setattr(model.relu2, "subgradient", 0.25),
    "layer None": lambda model: setattr(model, "relu2", None),
    "stride as a list": lambda model: setattr(model.conv1, "stride", [1, 1]),
    "subgradient as a tensor": lambda model: setattr(model.relu2, "subgradient", torch.tensor(0.5)),
    "no bias": lambda model: setattr(model.dense2, "bias", None),
    "frozen layer": lambda model: model.conv0.requires_grad_(False),
    "deleted layer": lambda model: delattr(model, "dense3"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_model_runs_layer_by_layer(plan_calls, change):
    model, x, _ = make_model()
    before = gradients(model, x, torch.ones(4, 10))[0]
    plan_calls.clear()
    CHANGES[change](model)
    try:
        after = model(x)
        after.sum().backward()
        model.cost(x, torch.arange(4))
    except (ValueError, RuntimeError, TypeError):
        assert change in ("stride", "padding")  # the flattened image no longer fits the dense layer
    else:
        assert after.shape != before.shape or change in (
            "frozen layer", "backward hook", "subclass", "subgradient", "stride as a list", "subgradient as a tensor"
        ) or not torch.equal(after, before)  # fmt: skip
    assert plan_calls == []


def test_input_gradients_and_transforms_run_layer_by_layer(plan_calls):
    model, x, labels = make_model()
    x.requires_grad_()
    model.cost(x, labels).backward()
    assert x.grad is not None
    x = x.detach()
    with torch.autocast("cpu", torch.bfloat16):
        model(x)
    torch.func.jvp(model, (x,), (x,))
    torch.vmap(model)(x.unsqueeze(1))
    torch.func.functional_call(model, {name: p.detach() for name, p in model.named_parameters()}, (x,)).sum()
    model(x.expand(4, 1, 28, 28)[0])  # one image
    model.double()(x.double())
    assert plan_calls.count("backward") == 0
    assert plan_calls in ([], ["forward"])  # functional_call may use the plan: its parameters need no gradient


def test_global_module_hooks_run(plan_calls):
    model, x, labels = make_model()
    called = []
    handle = nn.modules.module.register_module_forward_hook(lambda layer, *_: called.append(layer))
    try:
        model(x)
        model.cost(x, labels)
    finally:
        handle.remove()
    assert called.count(model.dense2) == 2
    assert plan_calls == []


OVERRIDES = {
    "forward hook": lambda model, note: model.register_forward_hook(lambda *_: note()),
    "a forward": lambda model, note: setattr(model, "forward", lambda x: (note(), DocumentCNN.forward(model, x))[1]),
    "backward hook": lambda model, note: model.register_full_backward_hook(lambda *_: note()),
}


@pytest.mark.parametrize("override", OVERRIDES)
def test_hook_or_forward_of_the_model_runs_in_cost(override):
    (model, x, labels), ran = make_model(), []
    OVERRIDES[override](model, lambda: ran.append(override))
    model.cost(x, labels).backward()
    assert ran == [override]


def test_shared_layer_runs_twice():
    model, x, labels = make_model(hidden=(20, 20))
    twice = copy.deepcopy(model)
    twice.dense3 = nn.Identity()
    model.dense3, model.relu3 = ours.Dense(20, 20), model.relu2
    twice.dense3, twice.relu3 = model.dense3, ours.ReLU()
    torch.testing.assert_close(model(x), twice(x))
    model.dense3 = model.dense4 = ours.Dense(20, 20)
    model.classes = 20
    assert [f is model.dense3 for f in model.layers_with_weights()] == [False, False, False, True, True]
    updates = backprop.backpropagate(model, x, labels, eta=-1)
    model.cost(x, labels).backward()
    torch.testing.assert_close(model.dense3.weight.grad, updates.weights[3] + updates.weights[4])


def test_call_of_a_subclass_is_used():
    class Twice(DocumentCNN):
        def __call__(self, x):
            return super().__call__(2 * x)

    model, x, labels = Twice(), *make_model()[1:]
    torch.testing.assert_close(model.cost(x, labels), cost_from_logits(model, x, labels))


def test_forward_of_a_subclass_is_used():
    class Louder(DocumentCNN):
        def forward(self, x):
            return 2 * super().forward(x)

    model, x, labels = Louder(), *make_model()[1:]
    torch.testing.assert_close(model.cost(x, labels), cost_from_logits(model, x, labels))
    with pytest.raises(IndexError, match="a label must lie between 0 and 9"):
        DocumentCNN().cost(x, labels + 10)


# --------------------------------------------------------------------------------------- regressions


def test_default_device_does_not_affect_kernels():
    model, x, labels = make_model()
    expected = [model(x), backprop.backpropagate(model, x, labels).cost, softmax_cross_entropy(model(x), labels)]
    with torch.device("meta"):
        actual = [model(x), backprop.backpropagate(model, x, labels).cost, softmax_cross_entropy(model(x), labels)]
    assert all(map(torch.equal, actual, expected))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_transforms_of_the_cost_of_labels(reduction):
    z, labels = torch.randn(6, 10), torch.randint(10, (6,))

    def cost(z):
        return softmax_cross_entropy(z, labels, reduction=reduction).sum()

    transforms = [
        lambda: torch.func.grad(cost)(z),
        lambda: torch.func.hessian(cost)(z),
        lambda: torch.func.jvp(cost, (z,), (z,))[1],
        lambda: torch.func.grad(lambda a: a * cost(z))(torch.ones(())),  # the cost does not depend on a
    ]
    for transform in transforms:
        torch.testing.assert_close(transform(), without_kernels(transform))
    with pytest.raises(RuntimeError, match="Functionalize rule"):  # PyTorch has none for any Function
        torch.func.functionalize(cost)(z)


def test_torch_func_differentiates_the_model():
    model, x, labels = make_model()
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def cost(p):
        return softmax_cross_entropy(torch.func.functional_call(model, p, (x,)), labels)

    grads = torch.func.grad(cost)(parameters)
    model.cost(x, labels).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(grads[name], parameter.grad, rtol=1e-4, atol=1e-7)
    cost_by_backprop = torch.func.grad(lambda a: a * backprop.backpropagate(model, x, labels).cost)(torch.ones(()))
    torch.testing.assert_close(cost_by_backprop, model.cost(x, labels).detach())


@pytest.mark.parametrize("kind", ["Dense", "ReLU", "Flatten", "ConvReLUMaxPool2d"])
def test_patched_class_forward_is_used(monkeypatch, kind):
    model, x, _ = make_model()
    before, kind = model(x), getattr(ours, kind)
    original = kind.forward
    monkeypatch.setattr(kind, "forward", lambda layer, x: original(layer, x) * 2)
    after = model(x)
    assert not torch.allclose(after, before)
    torch.testing.assert_close(after, without_kernels(lambda: model(x)))


def test_patched_call_of_all_modules_is_used(monkeypatch):
    called, call = [], nn.Module.__call__
    monkeypatch.setattr(nn.Module, "__call__", lambda self, *args: called.append(type(self)) or call(self, *args))
    model = DocumentCNN()
    model(torch.randn(2, 1, 28, 28))
    assert called == [DocumentCNN, *(type(layer) for layer in model.children())]


def test_errors_are_those_of_the_layers():
    model, x, labels = make_model()
    with pytest.raises(TypeError, match="must be a tensor"):
        model(x.numpy())
    with pytest.raises(TypeError, match="target must be class indices or probabilities"):
        backprop.backpropagate(model, x, labels.tolist())
    labels[1] = -(2**63)
    with pytest.raises(IndexError, match="must lie between 0 and 9"):
        backprop.backpropagate(model, x, labels)
    for layer in model.children():
        if hasattr(layer, "subgradient"):
            layer.subgradient = 2.0
    model.subgradient = 2.0
    with pytest.raises(ValueError, match="subgradient must lie between 0 and 1"):
        model(x)


def test_each_guard_cites_tests_that_exist():
    source = (ROOT / "manualgrad" / "network" / "guards.py").read_text()
    cited = set(re.findall(r"(?:(tests/[\w/]+\.py)::)?(test_[a-z_]+)\b(?!\.py)", source))
    assert len(cited) > 10
    for path, name in cited:
        text = (ROOT / (path or "tests/network/test_plan_guards.py")).read_text()
        assert f"def {name}(" in text, f"guards.py cites {path}::{name}"
