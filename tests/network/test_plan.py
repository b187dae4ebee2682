"""Promise: the network as one program gives what its layers give, in every instruction set, where it may be used."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize

from manualgrad import DocumentCNN, backprop, kernels, softmax_cross_entropy
from manualgrad import nn as nn_of_ours
from manualgrad.cpu import jit, team
from manualgrad.network import guards
from manualgrad.network.plan import Plan

INSTRUCTIONS = jit.instruction_sets() if kernels.available().instructions else ()
pytestmark = [
    pytest.mark.skipif(not INSTRUCTIONS, reason=str(kernels.available())),
    pytest.mark.usefixtures("kernels_as_before"),
]
every_set = pytest.mark.parametrize("instructions", INSTRUCTIONS)


def network(images=4, whole_numbers=False, seed=0, **arguments) -> tuple[DocumentCNN, torch.Tensor, torch.Tensor]:
    """A model, images and labels; of whole numbers, the weights −1, 0 and 1, so that every product is exact."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DocumentCNN(**arguments)
    size = arguments.get("image_size", 28)
    x = torch.randn(images, arguments.get("in_channels", 1), *(size if isinstance(size, tuple) else (size, size)),
                    generator=generator)  # fmt: skip
    if whole_numbers:
        x = x.round()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randint(-1, 2, parameter.shape, generator=generator))
    return model, x, torch.randint(model.classes, (images,), generator=generator)


def gradients(model: DocumentCNN, x: torch.Tensor, g: torch.Tensor) -> list[torch.Tensor]:
    z = model(x)
    return [z.detach(), *torch.autograd.grad(z, list(model.parameters()), g)]


def by_formulas(model: DocumentCNN, x: torch.Tensor, g: torch.Tensor, dtype=torch.float32) -> list[torch.Tensor]:
    used = kernels.available().instructions
    kernels.choose("off")
    try:
        return gradients(copy.deepcopy(model).to(dtype), x.to(dtype), g.to(dtype))
    finally:
        kernels.choose(used)


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
few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@every_set
@few
@given(architecture=architectures, images=st.sampled_from([0, 1, 2, 7, 33]), threads=st.integers(1, 4))
@example(architecture={}, images=63, threads=2)
@example(architecture={}, images=64, threads=1)
@example(architecture={"channels": (32, 64)}, images=65, threads=3)
@example(architecture={}, images=130, threads=1)  # more images than a slot takes
def test_whole_numbers_come_out_exactly_as_by_formulas(instructions, architecture, images, threads):
    """With many ties and zeros. Numbers are multiples of 2⁻⁴ below 2²⁰: no addition rounds, in whichever order."""
    model, x, _ = network(images, whole_numbers=True, **architecture)
    kernels.choose(instructions)
    torch.set_num_threads(threads)
    assert guards.plan_of(model, x) is not None
    g = torch.randint(-1, 2, (images, model.classes), generator=torch.Generator().manual_seed(1)).float()
    expected = by_formulas(model, x, g, torch.float64)
    assume(all(right.numel() == 0 or right.abs().max() < 2**20 for right in expected))
    for found, right in zip(gradients(model, x, g), expected, strict=True):
        assert torch.equal(found.double(), right)


@every_set
@few
@given(architecture=architectures, images=st.sampled_from([1, 2, 7, 33]), threads=st.integers(1, 4))
def test_drawn_numbers_are_as_near_to_float64_as_by_formulas(instructions, architecture, images, threads):
    model, x, _ = network(images, **architecture)
    kernels.choose(instructions)
    torch.set_num_threads(threads)
    g = torch.randn(images, model.classes, generator=torch.Generator().manual_seed(1))
    right, formulas = by_formulas(model, x, g, torch.float64), by_formulas(model, x, g)
    found = gradients(model, x, g)

    def error(tensors):
        return sum((t.double() - r).square().sum() for t, r in zip(tensors, right, strict=True)).sqrt()

    norm = sum(r.square().sum() for r in right).sqrt()
    # a window whose two largest are within a rounding may go either way, and then one δ in hundreds does
    assert error(found) <= 4 * error(formulas) + 1e-6 * norm or error(found) <= 0.05 * norm


@every_set
@pytest.mark.parametrize("strange", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("where", ["x", "conv0.weight", "conv1.weight", "conv1.bias", "dense2.weight", "dense3.bias"])
def test_infinities_and_nan_go_where_they_go_by_formulas(instructions, strange, where):
    model, x, _ = network(5)
    kernels.choose(instructions)
    with torch.no_grad():
        (x if where == "x" else model.get_parameter(where)).view(-1)[3] = strange
    g = torch.ones(5, 10)
    for found, right in zip(gradients(model, x, g), by_formulas(model, x, g), strict=True):
        assert torch.equal(found.isnan(), right.isnan())
        assert torch.equal(found.isinf(), right.isinf())


@every_set
def test_the_documents_engine_has_the_same_bits(instructions):
    model, x, labels = network(65)
    kernels.choose(instructions)
    torch.set_num_threads(2)
    softmax_cross_entropy(model(x), labels).backward()
    steps = backprop.backpropagate(model, x, labels, eta=-1)
    for layer, weight, bias in zip(model.weighted(), steps.weights, steps.biases, strict=True):
        assert torch.equal(layer.weight.grad, weight)
        assert torch.equal(layer.bias.grad, bias)


@every_set
def test_what_lies_between_is_the_documents(instructions):
    """x^l, the codes and δ^l, as the formulas have them."""
    model, x, labels = network(7, hidden=(30, 20))
    kernels.choose(instructions)
    steps = backprop.backpropagate(model, x, labels)
    kernels.choose("off")
    right = backprop.backpropagate(model, x, labels)
    assert len(steps.layers) == len(right.layers) == 5
    for found, expected in zip(steps.layers, right.layers, strict=True):
        torch.testing.assert_close(found.x, expected.x)
        torch.testing.assert_close(found.z, expected.z)
        assert (found.code is None) == (expected.code is None)
        assert found.code is None or torch.equal(found.code, expected.code)
    for found, expected in zip(steps.deltas, right.deltas, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(steps.probabilities, right.probabilities)
    torch.testing.assert_close(steps.cost, right.cost)


def test_two_runs_give_the_same_bits():
    model, x, _ = network(130)
    torch.set_num_threads(3)
    first, second = (gradients(model, x, torch.ones(130, 10)) for _ in range(2))
    assert all(map(torch.equal, first, second))


# ----------------------------------------------------------------------------------- where it is used, and where not


@pytest.fixture
def programs(monkeypatch) -> list[str]:
    """Which of the three programs ran."""
    seen: list[str] = []
    for name in ("forward", "backward", "steps"):
        original = getattr(Plan, name)

        def noting(*arguments, original=original, name=name):
            seen.append(name)
            return original(*arguments)

        monkeypatch.setattr(Plan, name, noting)
    return seen


def test_it_is_used_for_training_and_for_looking(programs):
    model, x, labels = network()
    model.cost(x, labels).backward()
    assert programs == ["steps"]
    softmax_cross_entropy(model(x), labels).backward()
    assert programs == ["steps", "forward", "backward"]
    with torch.no_grad():
        model.cost(x, labels)
        model.probabilities(x)
    assert programs == ["steps", "forward", "backward", "forward", "forward"], "nobody wants derivatives"


def replaced(model):
    model.relu2 = nn.Identity()


def other_kind(model):
    model.conv0 = copy.deepcopy(model.conv0)
    model.conv0.__class__ = type("Mine", (type(model.conv0),), {})


def own_forward(model):
    model.dense2.forward = lambda x: x[:, :128] * 2


def hooked(model):
    model.pool = model.conv1.register_forward_hook(lambda layer, inputs, output: output * 2)


def heard(model):
    model.dense3.register_full_backward_hook(lambda layer, got, gave: None)


def parametrized(model):
    parametrize.register_parametrization(model.dense3, "weight", nn.Softplus())


CHANGES = {
    "a layer replaced": replaced,
    "a subclass": other_kind,
    "a forward of its own": own_forward,
    "a hook": hooked,
    "a backward hook": heard,
    "a parametrization": parametrized,
    "a stride": lambda model: setattr(model.conv1, "stride", (1, 2)),
    "padding": lambda model: setattr(model.conv0, "padding", (1, 1)),
    "a derivative at 0": lambda model: setattr(model.relu2, "subgradient", 0.25),
    "a layer of None": lambda model: setattr(model, "relu2", None),
    "a list": lambda model: setattr(model.conv1, "stride", [1, 1]),
    "a tensor": lambda model: setattr(model.relu2, "subgradient", torch.tensor(0.5)),
    "a correlation": lambda model: setattr(model.conv1, "flip_kernel", False),
    "no bias": lambda model: setattr(model.dense2, "bias", None),
    "a frozen layer": lambda model: model.conv0.requires_grad_(False),
    "a layer taken away": lambda model: delattr(model, "dense3"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_model_runs_layer_by_layer(programs, change):
    model, x, _ = network()
    before = gradients(model, x, torch.ones(4, 10))[0]
    programs.clear()
    CHANGES[change](model)
    try:
        after = model(x)
        after.sum().backward()
        model.cost(x, torch.arange(4))
    except (ValueError, RuntimeError, TypeError):
        assert change in ("a stride", "padding")  # the flattened image no longer fits the dense layer
    else:
        assert after.shape != before.shape or change in (
            "a frozen layer", "a backward hook", "a subclass", "a derivative at 0", "a list", "a tensor"
        ) or not torch.equal(after, before)  # fmt: skip
    assert programs == []


def test_what_is_asked_for_decides(programs):
    model, x, labels = network()
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
    assert programs.count("backward") == 0
    assert programs in ([], ["forward"])  # functional_call may run as one: nothing there asks for a gradient


def test_hooks_for_all_modules_are_heard(programs):
    model, x, labels = network()
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda layer, *_: seen.append(layer))
    try:
        model(x)
        model.cost(x, labels)
    finally:
        handle.remove()
    assert seen.count(model.dense2) == 2
    assert programs == []


def cost_of_logits(model, x, labels):
    return softmax_cross_entropy(model(x), labels)


@pytest.mark.parametrize("cost", [DocumentCNN.cost, cost_of_logits])
def test_second_derivatives_are_those_of_the_layers(cost):
    model, x, labels = network(3, hidden=(20,))
    layers, *_ = network(3, hidden=(20,), fused=False)
    found = []
    for m in (model, layers):
        m.load_state_dict(model.state_dict())
        parameters = list(m.parameters())
        first = torch.autograd.grad(cost(m, x, labels), parameters, create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in first), parameters))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("cost", [DocumentCNN.cost, cost_of_logits])
def test_backward_can_be_asked_twice_and_weights_must_stay(cost):
    model, x, labels = network()
    cost = cost(model, x, labels)
    first = torch.autograd.grad(cost, list(model.parameters()), retain_graph=True)
    second = torch.autograd.grad(cost, list(model.parameters()), retain_graph=True)
    assert all(map(torch.equal, first, second))
    with torch.no_grad():
        model.dense2.bias.add_(1)  # no derivative asks for a bias
    assert torch.equal(torch.autograd.grad(cost, model.dense2.weight, retain_graph=True)[0], first[4])
    with pytest.raises(RuntimeError, match="a bias needed for derivatives was modified by an inplace operation"):
        torch.autograd.grad(cost, model.dense2.weight, create_graph=True)
    with torch.no_grad():
        model.dense2.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        cost.backward()


@pytest.mark.parametrize("which", [torch.Size([4, 1, 28, 28]), torch.Size([128, 512]), None])
def test_saved_memory_of_another_shape_is_refused(which):
    """Hooks may give back anything; ``None`` stands for the memory between the layers."""
    model, x, _ = network()

    def shorter(t):
        chosen = t.dtype is torch.uint8 if which is None else t.shape == which
        return t[..., :-1].clone() if chosen else t

    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, shorter):
        z = model(x)
    with pytest.raises(ValueError, match="not what it was in forward"):
        z.sum().backward()


def test_the_cost_and_its_gradients_are_those_of_the_logits():
    model, x, labels = network(20)
    parameters = list(model.parameters())
    for factor in (1.0, -2.5, 0.0, torch.inf, torch.nan):
        costs = model.cost(x, labels), cost_of_logits(model, x, labels)
        found, right = (torch.autograd.grad(cost * factor, parameters) for cost in costs)
        torch.testing.assert_close(*costs)
        for one, other in zip(found, right, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6, equal_nan=True)


def test_gradients_that_were_given_out_are_the_callers():
    model, x, labels = network()
    parameters, cost = list(model.parameters()), model.cost(x, labels)
    first = torch.autograd.grad(cost, parameters, retain_graph=True)
    kept = [g.clone() for g in first]
    for g in first:
        g.zero_()
    cost.backward(retain_graph=True)
    cost.backward()
    for p, g in zip(parameters, kept, strict=True):
        assert torch.equal(p.grad, 2 * g)


def test_many_costs_can_be_differentiated_at_once():
    model, x, labels = network()
    cost, parameters = model.cost(x, labels), list(model.parameters())
    single = torch.autograd.grad(cost, parameters, retain_graph=True)
    batched = torch.autograd.grad(cost, parameters, torch.tensor([1.0, 3.0]), is_grads_batched=True)
    for one, many in zip(single, batched, strict=True):
        torch.testing.assert_close(many, torch.stack((one, 3 * one)), rtol=1e-4, atol=1e-6)


def test_the_probabilities_come_with_the_cost(programs):
    model, x, labels = network()
    cost, probabilities = model.cost_and_probabilities(x, labels)
    assert programs == ["steps"] and not probabilities.requires_grad
    expected = model.probabilities(x)
    torch.testing.assert_close(probabilities, expected.detach())
    model.relu2.register_forward_hook(lambda *_: None)
    again, same = model.cost_and_probabilities(x, labels)
    assert programs == ["steps", "forward"] and again.requires_grad and not same.requires_grad
    torch.testing.assert_close((again, same), (cost, probabilities))


OWN = {
    "a hook": lambda model, note: model.register_forward_hook(lambda *_: note()),
    "a forward": lambda model, note: setattr(model, "forward", lambda x: (note(), DocumentCNN.forward(model, x))[1]),
    "a backward hook": lambda model, note: model.register_full_backward_hook(lambda *_: note()),
}


@pytest.mark.parametrize("own", OWN)
def test_whoever_listens_to_the_model_is_heard_when_a_cost_is_asked_for(own):
    (model, x, labels), heard = network(), []
    OWN[own](model, lambda: heard.append(own))
    model.cost(x, labels).backward()
    assert heard == [own]


def test_the_labels_are_the_callers():
    model, x, labels = network()
    right = torch.autograd.grad(cost_of_logits(model, x, labels), model.dense3.weight)[0]
    with torch.inference_mode():
        made_elsewhere = labels.clone()
    model.cost(x, made_elsewhere).backward()
    cost = model.cost(x, labels)
    labels.add_(1)
    torch.testing.assert_close(torch.autograd.grad(cost, model.dense3.weight, create_graph=True)[0].detach(), right)
    torch.testing.assert_close(model.dense3.weight.grad, right)


def test_a_layer_that_is_used_twice_runs_twice():
    model, x, labels = network(hidden=(20, 20))
    twice = copy.deepcopy(model)
    twice.dense3 = nn.Identity()
    model.dense3, model.relu3 = nn_of_ours.Dense(20, 20), model.relu2
    twice.dense3, twice.relu3 = model.dense3, nn_of_ours.ReLU()
    torch.testing.assert_close(model(x), twice(x))
    model.dense3 = model.dense4 = nn_of_ours.Dense(20, 20)
    model.classes = 20
    assert [f is model.dense3 for f in model.weighted()] == [False, False, False, True, True]
    steps = backprop.backpropagate(model, x, labels, eta=-1)
    model.cost(x, labels).backward()
    torch.testing.assert_close(model.dense3.weight.grad, steps.weights[3] + steps.weights[4])


def test_a_subclass_with_a_call_of_its_own_keeps_it():
    class Twice(DocumentCNN):
        def __call__(self, x):
            return super().__call__(2 * x)

    model, x, labels = Twice(), *network()[1:]
    torch.testing.assert_close(model.cost(x, labels), cost_of_logits(model, x, labels))


def test_a_subclass_with_a_forward_of_its_own_keeps_it():
    class Louder(DocumentCNN):
        def forward(self, x):
            return 2 * super().forward(x)

    model, x, labels = Louder(), *network()[1:]
    torch.testing.assert_close(model.cost(x, labels), cost_of_logits(model, x, labels))
    with pytest.raises(IndexError, match="a label must lie between 0 and 9"):
        DocumentCNN().cost(x, labels + 10)


def test_models_are_copied_and_pickled_as_before():
    model, x, _ = network()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), model(x))


def test_it_is_told_once_how_many_threads_there_are(monkeypatch):
    """In a forked child, where torch's threads are gone, the program runs on one, with the same bits."""
    model, x, _ = network(64)
    torch.set_num_threads(2)
    before = model(x)
    monkeypatch.setattr(team, "_forked", True)
    assert torch.equal(model(x), before)


# ---------------------------------------------------------------------------------- what once went wrong


def without_kernels(function):
    kernels.choose("off")
    try:
        return function()
    finally:
        kernels.choose("auto")


def test_whatever_the_default_device_is_kernels_work_on_the_cpu():
    model, x, labels = network()
    expected = [model(x), backprop.backpropagate(model, x, labels).cost, softmax_cross_entropy(model(x), labels)]
    with torch.device("meta"):
        found = [model(x), backprop.backpropagate(model, x, labels).cost, softmax_cross_entropy(model(x), labels)]
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_cost_of_labels_is_transformed(reduction):
    z, labels = torch.randn(6, 10), torch.randint(10, (6,))

    def cost(z):
        return softmax_cross_entropy(z, labels, reduction=reduction).sum()

    transformed = [
        lambda: torch.func.grad(cost)(z),
        lambda: torch.func.hessian(cost)(z),
        lambda: torch.func.jvp(cost, (z,), (z,))[1],
        lambda: torch.func.grad(lambda a: a * cost(z))(torch.ones(())),  # constant inside
    ]
    for transform in transformed:
        torch.testing.assert_close(transform(), without_kernels(transform))
    with pytest.raises(RuntimeError, match="Functionalize rule"):  # PyTorch has none for any Function
        torch.func.functionalize(cost)(z)


def test_a_model_is_differentiated_by_torch_func():
    model, x, labels = network()
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    found = torch.func.grad(lambda p: softmax_cross_entropy(torch.func.functional_call(model, p, (x,)), labels))(
        parameters
    )
    model.cost(x, labels).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-7)
    inside = torch.func.grad(lambda a: a * backprop.backpropagate(model, x, labels).cost)(torch.ones(()))
    torch.testing.assert_close(inside, model.cost(x, labels).detach())


@pytest.mark.parametrize("kind", ["Dense", "ReLU", "Flatten", "ConvReLUMaxPool2d"])
def test_a_forward_changed_in_a_class_is_seen(monkeypatch, kind):
    model, x, _ = network()
    before, kind = model(x), getattr(nn_of_ours, kind)
    original = kind.forward
    monkeypatch.setattr(kind, "forward", lambda layer, x: original(layer, x) * 2)
    after = model(x)
    assert not torch.allclose(after, before)
    torch.testing.assert_close(after, without_kernels(lambda: model(x)))


def test_correlations_are_the_same_layer_by_layer():
    model, x, labels = network()
    convolved = model(x)
    for layer in (model.conv0, model.conv1):
        layer.flip_kernel = False
    correlated = model(x)
    assert not torch.allclose(correlated, convolved)
    torch.testing.assert_close(correlated, without_kernels(lambda: model(x)))
    steps = backprop.backpropagate(model, x, labels)
    right = without_kernels(lambda: backprop.backpropagate(model, x, labels))
    for found, expected in zip(steps.weights, right.weights, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


def test_mistakes_are_those_of_the_layers():
    model, x, labels = network()
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


def test_labels_that_do_not_count():
    model, x, labels = network()
    labels[2] = -100
    for targets in (labels, torch.full_like(labels, -100)):
        found = backprop.backpropagate(model, x, targets)
        right = without_kernels(lambda targets=targets: backprop.backpropagate(model, x, targets))
        torch.testing.assert_close(found.cost, right.cost, equal_nan=True)
        torch.testing.assert_close(found.cost, cost_of_logits(model, x, targets).detach(), equal_nan=True)
        torch.testing.assert_close(model.cost(x, targets).detach(), found.cost, equal_nan=True)
        for one, other in zip(found.weights + found.biases, right.weights + right.biases, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_autocast_is_obeyed_by_the_documents_engine():
    model, x, labels = network()
    with torch.autocast("cpu", torch.bfloat16):
        found = backprop.backpropagate(model, x, labels)
        right = without_kernels(lambda: backprop.backpropagate(model, x, labels))
    exact = backprop.backpropagate(model.double(), x.double(), labels).cost
    for cost in (found.cost, right.cost):
        assert cost.double() != exact.float().double()  # something was rounded to bfloat16
        torch.testing.assert_close(cost.double(), exact, rtol=2**-7, atol=0)
