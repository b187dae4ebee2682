"""Promise: a training run whose steps are one program has the bits of one without, and sees every change."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from manualgrad import DocumentCNN, data, kernels
from manualgrad.cpu import jit
from manualgrad.network.descent import Descent
from manualgrad.nn import Dense
from manualgrad.training import fused_step
from manualgrad.training.epochs import EpochLayout
from manualgrad.training.nonfinite import NonFiniteError
from manualgrad.training.optimizers import OPTIMIZERS, GradientDescent, make_lr_scheduler
from manualgrad.training.run import ENGINES, TrainingRun

INSTRUCTIONS = jit.instruction_sets() if kernels.available().instructions else ()
pytestmark = [
    pytest.mark.skipif(not INSTRUCTIONS, reason=str(kernels.available())),
    pytest.mark.usefixtures("restore_kernels"),
]


def make_run(dataset: data.Dataset, optimizer="sgd", engine="document", rate=0.1, hidden=(9,)) -> TrainingRun:
    torch.manual_seed(0)
    model = DocumentCNN(image_size=24, hidden=hidden)
    torch_optimizer, epochs = OPTIMIZERS[optimizer](model.parameters(), lr=rate), EpochLayout(120, 25, 3, (1.0, 0.5))
    schedule = make_lr_scheduler("linear", torch_optimizer, epochs.num_steps)
    options = {"epochs": epochs, "seed": 0, "average_last": 3, "engine": engine}
    return TrainingRun(model, torch_optimizer, schedule, dataset.center_crop(24), **options)


def finish(run: TrainingRun) -> TrainingRun:
    while not run.is_finished:
        run.train_step()
        if run.step_in_epoch == 0:
            run.begin_epoch()
    return run


def test_run_has_the_same_bits_with_and_without_fused_steps(dataset, monkeypatch):
    fused_steps = []
    original = Descent.step
    monkeypatch.setattr(Descent, "step", lambda *args: fused_steps.append(original(*args)) or fused_steps[-1])
    fused = finish(make_run(dataset))
    assert [stats is not None for stats in fused_steps] == [*[True] * 3, False, *[True, True, False] * 2]
    monkeypatch.setattr(fused_step, "make_descent", lambda *_: None)
    unfused = finish(make_run(dataset))
    assert len(fused_steps) == 10
    assert fused.losses == unfused.losses and fused.num_correct == unfused.num_correct
    assert all(map(torch.equal, fused.model.parameters(), unfused.model.parameters()))
    assert torch.equal(fused.sampler.label_probs, unfused.sampler.label_probs)


@pytest.mark.parametrize("other", [{"optimizer": "adam"}, {"engine": "autograd"}])
def test_other_optimizers_and_engines_have_no_fused_step(dataset, other):
    run = make_run(dataset, **other)
    assert run.fused_step is None or run.fused_step.descent is None
    assert make_run(dataset).fused_step.descent is not None


def take_two_steps(run: TrainingRun) -> TrainingRun:
    for _ in range(2):
        run.train_step()
    return run


def freeze_layer(run: TrainingRun) -> None:
    run.model.conv0.requires_grad_(False)


def replace_layer(run: TrainingRun) -> None:
    torch.manual_seed(5)
    run.model.dense2 = Dense(32 * 3 * 3, 9)


def transpose_weight(run: TrainingRun) -> None:
    run.model.conv1.weight.data = run.model.conv1.weight.data.transpose(2, 3)


def add_optimizer_hook(run: TrainingRun) -> None:
    def zero_first_gradient(*_) -> None:
        run.model.conv0.weight.grad.zero_()

    run.optimizer.register_step_pre_hook(zero_first_gradient)


def remove_parameter(run: TrainingRun) -> None:
    del run.optimizer.param_groups[0]["params"][0]


CHANGES = {
    "frozen layer": freeze_layer,
    "replaced layer": replace_layer,
    "transposed weight": transpose_weight,
    "optimizer hook": add_optimizer_hook,
    "removed parameter": remove_parameter,
    "unflipped kernel": lambda run: setattr(run.model.conv1, "flip_kernel", False),
}


@pytest.mark.parametrize("when", ["before", "mid-epoch"])
@pytest.mark.parametrize("change", CHANGES)
def test_changes_take_effect_at_the_next_step(dataset, monkeypatch, change, when):
    def run_with_change() -> TrainingRun:
        run = make_run(dataset)
        if when != "before":
            take_two_steps(run)
        CHANGES[change](run)
        if when == "before":
            run.draw_epoch_indices()
        return take_two_steps(run)

    actual = run_with_change()
    monkeypatch.setattr(fused_step, "make_descent", lambda *_: None)
    expected = run_with_change()
    assert actual.losses == expected.losses
    assert all(map(torch.equal, actual.model.parameters(), expected.model.parameters()))


@pytest.mark.parametrize("engine", ENGINES)
def test_frozen_weight_stays_and_shared_weight_has_both_gradients(dataset, engine):
    run = make_run(dataset, engine=engine, hidden=(10, 10))
    run.model.conv0.requires_grad_(False)
    before = run.model.conv0.weight.clone()
    run.model.dense4 = run.model.dense3
    x, labels = run.batches.batch(0)
    run.compute_gradients(x, labels, len(labels))
    assert run.model.conv0.weight.grad is None and torch.equal(run.model.conv0.weight, before)
    model = run.model.double()
    (expected,) = torch.autograd.grad(model.cost(x.double(), labels), [model.dense3.weight])
    torch.testing.assert_close(model.dense3.weight.grad, expected, rtol=1e-4, atol=1e-6)


def test_freed_images_are_not_read(dataset):
    split = data.Split(dataset.train.images.clone(), dataset.train.labels)
    run = take_two_steps(make_run(replace(dataset, train=split)))
    split.images.untyped_storage().resize_(0)
    assert run.fused_step.descent.step(25, 0.1) is None


def test_nonfinite_cost_raises_and_leaves_the_weights_unchanged(dataset):
    run = make_run(dataset)
    run.train_step()
    with torch.no_grad():
        run.model.dense2.bias[3] = torch.nan
    before = [p.detach().clone() for p in run.model.parameters()]
    with pytest.raises(NonFiniteError, match=r"dense2\.bias"):
        run.train_step()
    for p, unchanged in zip(run.model.parameters(), before, strict=True):
        torch.testing.assert_close(p.detach(), unchanged, rtol=0, atol=0, equal_nan=True)


def test_error_names_a_label_of_no_class(dataset):
    labels = dataset.train.labels.clone()
    run = make_run(replace(dataset, train=data.Split(dataset.train.images, labels)))
    labels[run.epoch_indices[30]] = 11
    run.begin_epoch()
    with pytest.raises(IndexError, match="label"):
        finish(run)


def test_gradient_descent_has_the_bits_of_sgd():
    torch.manual_seed(0)
    ours, native = (
        [torch.nn.Parameter(torch.linspace(-3, 3, 1001)), torch.nn.Parameter(torch.ones(7))] for _ in "ab"
    )
    optimizers = GradientDescent(ours, lr=0.3), torch.optim.SGD(native, lr=0.3)
    for _ in range(5):
        g = torch.randn(1001)
        ours[0].grad, native[0].grad = g.clone(), g.clone()  # the other parameter has no gradient
        for optimizer in optimizers:
            optimizer.step()
        assert all(map(torch.equal, ours, native))
