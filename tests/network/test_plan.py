"""Promise: a plan computes what its layers compute, in every instruction set, and runs only where it may."""

from __future__ import annotations

import copy
import pickle
import re
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize

from manualgrad import DocumentCNN, backprop, kernels, softmax_cross_entropy
from manualgrad import nn as ours
from manualgrad.cpu import jit, team
from manualgrad.network import guards
from manualgrad.network.plan import Plan

ROOT = Path(__file__).parents[2]

INSTRUCTIONS = jit.instruction_sets() if kernels.available().instructions else ()
pytestmark = [
    pytest.mark.skipif(not INSTRUCTIONS, reason=str(kernels.available())),
    pytest.mark.usefixtures("restore_kernels"),
]
every_instruction_set = pytest.mark.parametrize("instructions", INSTRUCTIONS)


def make_model(
    batch_size=4, whole_numbers=False, seed=0, **arguments
) -> tuple[DocumentCNN, torch.Tensor, torch.Tensor]:
    """A model, images and labels. With ``whole_numbers`` weights are −1, 0 and 1, so that every product is exact."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DocumentCNN(**arguments)
    size = arguments.get("image_size", 28)
    x = torch.randn(batch_size, arguments.get("in_channels", 1), *(size if isinstance(size, tuple) else (size, size)),
                    generator=generator)  # fmt: skip
    if whole_numbers:
        x = x.round()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randint(-1, 2, parameter.shape, generator=generator))
    return model, x, torch.randint(model.classes, (batch_size,), generator=generator)


def gradients(model: DocumentCNN, x: torch.Tensor, g: torch.Tensor) -> list[torch.Tensor]:
    z = model(x)
    return [z.detach(), *torch.autograd.grad(z, list(model.parameters()), g)]


def gradients_by_formulas(
    model: DocumentCNN, x: torch.Tensor, g: torch.Tensor, dtype=torch.float32
) -> list[torch.Tensor]:
    instructions = kernels.available().instructions
    kernels.choose("off")
    try:
        return gradients(copy.deepcopy(model).to(dtype), x.to(dtype), g.to(dtype))
    finally:
        kernels.choose(instructions)


architectures = st.fixed_dictionaries(
    {
        "in_channels": st.sampled_from([1, 1, 2, 3, 5, 16]),
        "channels": st.lists(st.sampled_from([16, 32, 48]), min_size=1, max_size=2),
        "kernel_size": st.tuples(st.integers(1, 5), st.integers(1, 6)),
        "image_size": st.tuples(st.integers(18, 26), st.integers(20, 25)),
        "hidden": st.lists(st.integers(1, 40), max_size=3),
        "classes": st.integers(1, 12),
        "subgradient": st.sampled_from([0.0, 0.5, 1.0]),
    }
)
few_examples = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@every_instruction_set
@few_examples
@given(architecture=architectures, batch_size=st.sampled_from([0, 1, 2, 7, 33]), threads=st.integers(1, 4))
@example(architecture={}, batch_size=63, threads=2)
@example(architecture={}, batch_size=64, threads=1)
@example(architecture={"channels": (32, 64)}, batch_size=65, threads=3)
@example(architecture={}, batch_size=130, threads=1)  # more images than a task takes
def test_integer_results_equal_the_formulas_exactly(instructions, architecture, batch_size, threads):
    """Inputs have many ties and zeros. Numbers are multiples of 2⁻⁴ below 2²⁰: no addition rounds, in any order."""
    model, x, _ = make_model(batch_size, whole_numbers=True, **architecture)
    kernels.choose(instructions)
    torch.set_num_threads(threads)
    assert guards.explain(model, x) is None
    g = torch.randint(-1, 2, (batch_size, model.classes), generator=torch.Generator().manual_seed(1)).float()
    expected = gradients_by_formulas(model, x, g, torch.float64)
    assume(all(tensor.numel() == 0 or tensor.abs().max() < 2**20 for tensor in expected))
    for actual, exact in zip(gradients(model, x, g), expected, strict=True):
        assert torch.equal(actual.double(), exact)


@every_instruction_set
@few_examples
@given(architecture=architectures, batch_size=st.sampled_from([1, 2, 7, 33]), threads=st.integers(1, 4))
def test_random_results_are_as_close_to_float64_as_the_formulas(instructions, architecture, batch_size, threads):
    model, x, _ = make_model(batch_size, **architecture)
    kernels.choose(instructions)
    torch.set_num_threads(threads)
    g = torch.randn(batch_size, model.classes, generator=torch.Generator().manual_seed(1))
    exact, formulas = gradients_by_formulas(model, x, g, torch.float64), gradients_by_formulas(model, x, g)
    actual = gradients(model, x, g)

    def error(tensors):
        return sum((t.double() - r).square().sum() for t, r in zip(tensors, exact, strict=True)).sqrt()

    norm = sum(r.square().sum() for r in exact).sqrt()
    # Where rounding decides which of two numbers in a window is the maximum, a whole δ goes to the other position.
    assert error(actual) <= 4 * error(formulas) + 1e-6 * norm or error(actual) <= 0.05 * norm


@every_instruction_set
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize(
    "tensor_name", ["x", "conv0.weight", "conv1.weight", "conv1.bias", "dense2.weight", "dense3.bias"]
)
def test_infinities_and_nans_spread_as_by_the_formulas(instructions, value, tensor_name):
    model, x, _ = make_model(5)
    kernels.choose(instructions)
    with torch.no_grad():
        (x if tensor_name == "x" else model.get_parameter(tensor_name)).view(-1)[3] = value
    g = torch.ones(5, 10)
    for actual, expected in zip(gradients(model, x, g), gradients_by_formulas(model, x, g), strict=True):
        assert torch.equal(actual.isnan(), expected.isnan())
        assert torch.equal(actual.isinf(), expected.isinf())


@every_instruction_set
def test_backprop_has_the_bits_of_autograd(instructions):
    model, x, labels = make_model(65)
    kernels.choose(instructions)
    torch.set_num_threads(2)
    softmax_cross_entropy(model(x), labels).backward()
    updates = backprop.backpropagate(model, x, labels, eta=-1)
    for layer, weight, bias in zip(model.layers_with_weights(), updates.weights, updates.biases, strict=True):
        assert torch.equal(layer.weight.grad, weight)
        assert torch.equal(layer.bias.grad, bias)


@every_instruction_set
def test_intermediates_equal_the_formulas(instructions):
    """x^l, the pool indices and δ^l."""
    model, x, labels = make_model(7, hidden=(30, 20))
    kernels.choose(instructions)
    updates = backprop.backpropagate(model, x, labels)
    kernels.choose("off")
    expected = backprop.backpropagate(model, x, labels)
    assert len(updates.layers) == len(expected.layers) == 5
    for layer, expected_layer in zip(updates.layers, expected.layers, strict=True):
        assert type(layer) is type(expected_layer)
        torch.testing.assert_close(layer.x, expected_layer.x)
        torch.testing.assert_close(layer.z, expected_layer.z)
        if isinstance(layer, backprop.ConvLayer):
            assert torch.equal(layer.pool_index, expected_layer.pool_index)
    for delta, expected_delta in zip(updates.deltas, expected.deltas, strict=True):
        torch.testing.assert_close(delta, expected_delta, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(updates.probabilities, expected.probabilities)
    torch.testing.assert_close(updates.cost, expected.cost)


def test_two_runs_give_the_same_bits():
    model, x, _ = make_model(130)
    torch.set_num_threads(3)
    first, second = (gradients(model, x, torch.ones(130, 10)) for _ in range(2))
    assert all(map(torch.equal, first, second))


# ------------------------------------------------------------------------------------------ where a plan runs


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


def cost_from_logits(model, x, labels):
    return softmax_cross_entropy(model(x), labels)


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


# --------------------------------------------------------------------------------------- regressions


def without_kernels(function):
    kernels.choose("off")
    try:
        return function()
    finally:
        kernels.choose("auto")


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


def test_unflipped_kernels_equal_the_formulas():
    model, x, labels = make_model()
    convolved = model(x)
    model.conv0.flip_kernel = False
    assert guards.explain(model, x) is None
    torch.testing.assert_close(model(x), without_kernels(lambda: model(x)))
    model.conv1.flip_kernel = False
    correlated = model(x)
    assert not torch.allclose(correlated, convolved)
    torch.testing.assert_close(correlated, without_kernels(lambda: model(x)))
    updates = backprop.backpropagate(model, x, labels)
    by_formulas = without_kernels(lambda: backprop.backpropagate(model, x, labels))
    for actual, expected in zip(updates.weights, by_formulas.weights, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-7)


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


def test_ignored_labels_equal_the_formulas():
    model, x, labels = make_model()
    labels[2] = -100
    for targets in (labels, torch.full_like(labels, -100)):
        updates = backprop.backpropagate(model, x, targets)
        by_formulas = without_kernels(lambda targets=targets: backprop.backpropagate(model, x, targets))
        torch.testing.assert_close(updates.cost, by_formulas.cost, equal_nan=True)
        torch.testing.assert_close(updates.cost, cost_from_logits(model, x, targets).detach(), equal_nan=True)
        torch.testing.assert_close(model.cost(x, targets).detach(), updates.cost, equal_nan=True)
        expected = by_formulas.weights + by_formulas.biases
        for a, b in zip(updates.weights + updates.biases, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


def test_backprop_obeys_autocast():
    model, x, labels = make_model()
    with torch.autocast("cpu", torch.bfloat16):
        by_kernels = backprop.backpropagate(model, x, labels)
        by_formulas = without_kernels(lambda: backprop.backpropagate(model, x, labels))
    exact = backprop.backpropagate(model.double(), x.double(), labels).cost
    for cost in (by_kernels.cost, by_formulas.cost):
        assert cost.double() != exact.float().double(), "nothing was rounded to bfloat16"
        torch.testing.assert_close(cost.double(), exact, rtol=2**-7, atol=0)


def test_each_guard_cites_tests_that_exist():
    source = (ROOT / "manualgrad" / "network" / "guards.py").read_text()
    cited = set(re.findall(r"(?:(tests/[\w/]+\.py)::)?(test_[a-z_]+)\b(?!\.py)", source))
    assert len(cited) > 10
    for path, name in cited:
        text = (ROOT / (path or "tests/network/test_plan.py")).read_text()
        assert f"def {name}(" in text, f"guards.py cites {path}::{name}"
