"""Promise: a step by one program is the step of the document's engine and the optimiser, bit for bit, or none."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manualgrad import DocumentCNN, backprop, data, kernels
from manualgrad.cpu import jit
from manualgrad.network.descent import Descent
from manualgrad.nn import Dense
from manualgrad.training import by_program
from manualgrad.training.by_program import descent_of
from manualgrad.training.epochs import Epochs
from manualgrad.training.nonfinite import NonFinite
from manualgrad.training.run import ENGINES, Run
from manualgrad.training.steps import OPTIMIZERS, GradientDescent, normalised, step_sizes

INSTRUCTIONS = jit.instruction_sets() if kernels.available().instructions else ()
pytestmark = [
    pytest.mark.skipif(not INSTRUCTIONS, reason=str(kernels.available())),
    pytest.mark.usefixtures("kernels_as_before"),
]
few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def dataset() -> data.Dataset:
    return data.bundled_sample().limited(120)


def made(dataset: data.Dataset, batch: int = 20, **arguments) -> tuple[DocumentCNN, Descent]:
    torch.manual_seed(0)
    model = DocumentCNN(image_size=tuple(dataset.train.images.shape[-2:]), **arguments)
    descent = descent_of(model, dataset, batch)
    assert descent is not None
    return model, descent


architectures = st.fixed_dictionaries(
    {
        "channels": st.lists(st.sampled_from([16, 32, 48]), min_size=1, max_size=2),
        "kernel_size": st.tuples(st.integers(1, 5), st.integers(1, 5)),
        "hidden": st.lists(st.integers(1, 40), max_size=2),
        "subgradient": st.sampled_from([0.0, 0.5]),
    }
)


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@few
@given(
    architecture=architectures,
    side=st.integers(18, 28),
    batch=st.sampled_from([1, 7, 33, 64]),
    threads=st.integers(1, 4),
    rate=st.floats(0.001, 0.5),
)
def test_a_step_has_the_bits_of_the_engine_and_the_optimiser(
    dataset, instructions, architecture, side, batch, threads, rate
):
    kernels.choose(instructions)
    torch.set_num_threads(threads)
    middle = dataset.middle(side)
    model, descent = made(middle, batch, **architecture)
    twin = DocumentCNN(image_size=side, **architecture)
    twin.load_state_dict(model.state_dict())
    optimizer = torch.optim.SGD(twin.parameters(), lr=rate)
    order = torch.randperm(120)
    descent.begin(order)
    for first in (0, 120 - batch):
        chosen = order[first : first + batch]
        x, labels = normalised(middle.train.images[chosen], middle), middle.train.labels[chosen]
        steps = backprop.backpropagate(twin, x, labels, eta=-1)
        for layer, w, b in zip(twin.weighted(), steps.weights, steps.biases, strict=True):
            layer.weight.grad, layer.bias.grad = w, b
        optimizer.step()
        taken = descent.step(first, rate)
        assert taken.cost == steps.cost.item()
        assert taken.right == int((steps.probabilities.argmax(1) == labels).sum())
        assert torch.equal(taken.known, steps.probabilities.gather(1, labels[:, None])[:, 0])
        assert all(map(torch.equal, model.parameters(), twin.parameters()))


def test_the_first_of_equal_answers_counts(dataset):
    model, descent = made(dataset, 120, hidden=())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    descent.begin(torch.arange(120))
    taken = descent.step(0, 0.1)
    assert taken.right == int((dataset.train.labels == 0).sum())
    torch.testing.assert_close(taken.known, torch.full((120,), 0.1))


def test_weights_that_moved_are_noticed_by_whoever_needs_them(dataset):
    model, descent = made(dataset)
    z = model(normalised(dataset.train.images[:3], dataset))
    descent.begin(torch.arange(120))
    assert descent.step(0, 0.1) is not None
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


def broken_weight(model, descent):
    with torch.no_grad():
        model.conv1.weight[3, 2, 1, 0] = torch.inf


def broken_bias(model, descent):
    with torch.no_grad():
        model.dense2.bias[1] = torch.nan


def large_bias(model, descent):
    with torch.no_grad():
        model.dense2.bias[1] = 3e38
        model.dense2.bias[2] = -3e38


REFUSED = {
    "a weight that is not finite": broken_weight,
    "a bias that is not finite": broken_bias,
    "an infinite cost": large_bias,
    "other kernels": lambda model, descent: kernels.choose("off"),
    "another tensor": lambda model, descent: setattr(model.conv0.weight, "data", model.conv0.weight.clone()),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_a_step_that_is_refused_leaves_the_weights_alone(dataset, reason):
    model, descent = made(dataset, hidden=())
    descent.begin(torch.arange(120))
    assert descent.step(0, 0.1) is not None
    REFUSED[reason](model, descent)
    before = [p.detach().clone() for p in model.parameters()]
    assert descent.step(20, 0.1) is None
    for p, same in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(p.detach(), same, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("label", [10, -1, -100])
def test_nothing_is_done_with_labels_that_are_no_class(dataset, label):
    labels = dataset.train.labels.clone()
    labels[7] = label
    model, descent = made(replace(dataset, train=data.Split(dataset.train.images, labels)))
    before = [p.detach().clone() for p in model.parameters()]
    descent.begin(torch.arange(120))
    assert descent.step(20, 0.1) is None
    assert all(map(torch.equal, model.parameters(), before))
    descent.begin(torch.arange(20, 80))
    assert descent.step(0, 0.1) is not None, "that image is not among these"


def test_only_whole_batches_of_images_that_are_there(dataset):
    _, descent = made(dataset, 50)
    with pytest.raises(IndexError, match="numbers from 0 to 119"):
        descent.begin(torch.tensor([0, 120]))
    with pytest.raises(IndexError, match="numbers from 0 to 119"):
        descent.begin(torch.tensor([-1, 3]))
    descent.begin(torch.arange(120))
    assert [descent.step(first, 0.1) is None for first in (0, 50, 70, 71, 100, -1)] == [False] * 3 + [True] * 3


def test_data_that_kernels_cannot_read_is_refused(dataset):
    model, descent = made(dataset)
    images, labels = dataset.train.images, dataset.train.labels
    wide = torch.zeros(120, 1, 28, 56, dtype=torch.uint8)[..., ::2]
    for wrong in ((images.float(), labels), (images, labels.int()), (wide, labels), (images[:, 0], labels)):
        with pytest.raises(ValueError, match="images must be uint8"):
            Descent(descent.plan, list(model.parameters()), *wrong, 0.0, 1.0)
    single = DocumentCNN(fused=False)
    assert descent_of(single, dataset, 20) is None
    assert descent_of(model, dataset, 121) is None
    assert descent_of(model.double(), dataset, 20) is None


# ------------------------------------------------------------------------------------------------------ in a run


def begun(dataset: data.Dataset, optimizer="sgd", engine="document", rate=0.1, hidden=(9,)) -> Run:
    torch.manual_seed(0)
    model = DocumentCNN(image_size=24, hidden=hidden)
    steps, epochs = OPTIMIZERS[optimizer](model.parameters(), lr=rate), Epochs(120, 25, 3, (1.0, 0.5))
    schedule = step_sizes("linear", steps, epochs.steps)
    return Run(model, steps, schedule, dataset.middle(24), epochs=epochs, seed=0, averaged=3, engine=engine)


def finished(run: Run) -> Run:
    while not run.is_over:
        run.take_step()
        if run.place == 0:
            run.begin_epoch()
    return run


def test_a_run_ends_with_the_same_bits_with_and_without(dataset, monkeypatch):
    steps = []
    original = Descent.step
    monkeypatch.setattr(Descent, "step", lambda *given: steps.append(original(*given)) or steps[-1])
    with_it = finished(begun(dataset))
    assert [taken is not None for taken in steps] == [*[True] * 3, False, *[True, True, False] * 2]
    monkeypatch.setattr(by_program, "descent_of", lambda *_: None)
    by_gradients = finished(begun(dataset))
    assert len(steps) == 10
    assert with_it.costs == by_gradients.costs and with_it.right == by_gradients.right
    assert all(map(torch.equal, with_it.model.parameters(), by_gradients.model.parameters()))
    assert torch.equal(with_it.choice.before, by_gradients.choice.before)


@pytest.mark.parametrize("other", [{"optimizer": "adam"}, {"engine": "autograd"}])
def test_other_optimisers_and_the_other_engine_step_by_themselves(dataset, other):
    run = begun(dataset, **other)
    assert run.by_program is None or run.by_program.descent is None
    assert begun(dataset).by_program.descent is not None


def stepped(run: Run) -> Run:
    for _ in range(2):
        run.take_step()
    return run


def frozen(run: Run) -> None:
    run.model.conv0.requires_grad_(False)


def another_layer(run: Run) -> None:
    torch.manual_seed(5)
    run.model.dense2 = Dense(32 * 3 * 3, 9)


def transposed(run: Run) -> None:
    run.model.conv1.weight.data = run.model.conv1.weight.data.transpose(2, 3)


def hooked(run: Run) -> None:
    def without_first_gradient(*_) -> None:
        run.model.conv0.weight.grad.zero_()

    run.optimizer.register_step_pre_hook(without_first_gradient)


def fewer(run: Run) -> None:
    del run.optimizer.param_groups[0]["params"][0]


SITUATIONS = {
    "a frozen layer": frozen,
    "another layer": another_layer,
    "a transposed weight": transposed,
    "a hook of the optimiser": hooked,
    "a weight that the optimiser leaves out": fewer,
    "another convolution": lambda run: setattr(run.model.conv1, "flip_kernel", False),
}


@pytest.mark.parametrize("when", ["before", "in the middle of an epoch"])
@pytest.mark.parametrize("situation", SITUATIONS)
def test_what_is_changed_counts_from_the_next_step_on(dataset, monkeypatch, situation, when):
    def changed() -> Run:
        run = begun(dataset)
        if when != "before":
            stepped(run)
        SITUATIONS[situation](run)
        if when == "before":
            run.draw_order()
        return stepped(run)

    found = changed()
    monkeypatch.setattr(by_program, "descent_of", lambda *_: None)
    right = changed()
    assert found.costs == right.costs
    assert all(map(torch.equal, found.model.parameters(), right.model.parameters()))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_frozen_weight_stays_and_a_shared_one_has_both_gradients(dataset, engine):
    run = begun(dataset, engine=engine, hidden=(10, 10))
    run.model.conv0.requires_grad_(False)
    before = run.model.conv0.weight.clone()
    run.model.dense4 = run.model.dense3
    x, labels = next(run.batches)
    run.find_gradients(x, labels, len(labels))
    assert run.model.conv0.weight.grad is None and torch.equal(run.model.conv0.weight, before)
    model = run.model.double()
    (expected,) = torch.autograd.grad(model.cost(x.double(), labels), [model.dense3.weight])
    torch.testing.assert_close(model.dense3.weight.grad, expected, rtol=1e-4, atol=1e-6)


def test_images_that_were_freed_are_not_read(dataset):
    own = data.Split(dataset.train.images.clone(), dataset.train.labels)
    run = stepped(begun(replace(dataset, train=own)))
    own.images.untyped_storage().resize_(0)
    assert run.by_program.descent.step(25, 0.1) is None


def test_a_cost_that_is_not_finite_is_said_and_the_weights_are_as_before(dataset):
    run = begun(dataset)
    run.take_step()
    with torch.no_grad():
        run.model.dense2.bias[3] = torch.nan
    before = [p.detach().clone() for p in run.model.parameters()]
    with pytest.raises(NonFinite, match=r"dense2\.bias"):
        run.take_step()
    for p, same in zip(run.model.parameters(), before, strict=True):
        torch.testing.assert_close(p.detach(), same, rtol=0, atol=0, equal_nan=True)


def test_a_label_that_is_no_class_is_named(dataset):
    labels = dataset.train.labels.clone()
    run = begun(replace(dataset, train=data.Split(dataset.train.images, labels)))
    labels[run.chosen[30]] = 11
    run.begin_epoch()
    with pytest.raises(IndexError, match="label"):
        finished(run)


def test_gradient_descent_has_the_bits_of_torchs():
    torch.manual_seed(0)
    ours, theirs = (
        [torch.nn.Parameter(torch.linspace(-3, 3, 1001)), torch.nn.Parameter(torch.ones(7))] for _ in "ab"
    )
    optimizers = GradientDescent(ours, lr=0.3), torch.optim.SGD(theirs, lr=0.3)
    for _ in range(5):
        g = torch.randn(1001)
        ours[0].grad, theirs[0].grad = g.clone(), g.clone()  # the other parameter has no gradient
        for optimizer in optimizers:
            optimizer.step()
        assert all(map(torch.equal, ours, theirs))
