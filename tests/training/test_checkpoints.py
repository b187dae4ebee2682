"""Promise: a resumed run ends with the same bits as an uninterrupted one, and other settings are refused."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from manualgrad import data
from manualgrad.training import run_state
from manualgrad.training.checkpoints import (
    CheckpointError,
    SettingsMismatchError,
    serialize,
)
from manualgrad.training.optimizers import OPTIMIZERS, SCHEDULES
from manualgrad.training.run import TrainingRun
from tests.training.checkpoint_runs import make_run, same_weights, train


@pytest.mark.parametrize("step", [1, 2, 3, 5, 6])
@pytest.mark.parametrize("engine", ["autograd", "document"])
def test_a_resumed_run_ends_with_the_same_bits(dataset, engine, step):
    uninterrupted = train(make_run(dataset, engine=engine))
    content = serialize(run_state.state(train(make_run(dataset, engine=engine), step)))
    torch.manual_seed(99)
    again = make_run(dataset, engine=engine)
    for parameter in again.model.parameters():
        torch.nn.init.normal_(parameter)  # no restored value may come from the initialization
    run_state.restore(again, content, "FILE")
    train(again)
    assert same_weights(again, uninterrupted)
    assert again.losses == uninterrupted.losses
    for epoch, expected in zip(again.history, uninterrupted.history, strict=True):
        assert {**epoch, "seconds": 0} == {**expected, "seconds": 0}


@pytest.mark.parametrize("step", [1, 3, 4, 5, 6, 7])
@pytest.mark.parametrize("engine", ["autograd", "document"])
def test_a_run_with_subsets_and_averaging_resumes_with_the_same_bits(dataset, engine, step):
    """3 steps on all images, 2 epochs of 2 steps on the hardest 0.6, and the average over the last 3 steps."""
    options = {"engine": engine, "epochs": 3, "fractions": (1.0, 0.6), "average_last": 3}
    uninterrupted = train(make_run(dataset, **options))
    assert uninterrupted.num_steps == 7
    again = make_run(dataset, **options)
    run_state.restore(again, serialize(run_state.state(train(make_run(dataset, **options), step))), "FILE")
    assert same_weights(train(again), uninterrupted)
    assert again.losses == uninterrupted.losses
    assert torch.equal(again.sampler.label_probs, uninterrupted.sampler.label_probs)
    for change in ({"average_last": 2}, {"fractions": (1.0,)}):
        assert not same_weights(train(make_run(dataset, **{**options, **change})), uninterrupted)


@pytest.mark.parametrize(("keys", "value", "message"), [
    (("costs", 3), torch.nan, "costs: expected finite"),
    (("history", 0, "cost"), torch.inf, r"history\[0\]: expected finite"),
    (("history", 0, "epoch"), 10**400, r"history\[0\].epoch: expected 1, got 1000"),
    (("seconds",), torch.nan, "seconds: expected finite"),
    (("right",), 10**400, "right: expected a number from 0 to 40"),
    (("right",), -1, "right: expected a number from 0 to 40"),
    (("model", "conv0.bias", 1), torch.nan, r"model.conv0.bias: expected finite"),
])  # fmt: skip
def test_implausible_numbers_are_refused(dataset, keys, value, message):
    state = run_state.state(train(make_run(dataset), 4))
    parent = state
    for key in keys[:-1]:
        parent = parent[key]
    parent[keys[-1]] = value
    with pytest.raises(CheckpointError, match=message):
        run_state.restore(make_run(dataset), serialize(state), "FILE")


def test_an_average_over_a_wrong_number_of_steps_is_refused(dataset):
    options = {"average_last": 3}
    state = run_state.state(train(make_run(dataset, **options), 5))
    state["mean"]["n_averaged"] += 1
    with pytest.raises(CheckpointError, match=r"mean\.n_averaged: expected 2, got 3"):
        run_state.restore(make_run(dataset, **options), serialize(state), "FILE")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_with_any_optimizer_resumes_with_the_same_bits(dataset, optimizer):
    content = serialize(run_state.state(train(make_run(dataset, optimizer), 4)))
    again = make_run(dataset, optimizer)
    run_state.restore(again, content, "FILE")
    assert same_weights(train(again), train(make_run(dataset, optimizer)))


@pytest.mark.parametrize("step", [-3.0, 5.0, math.inf, math.nan])
def test_an_optimizer_state_of_another_step_is_refused(dataset, step):
    state = run_state.state(train(make_run(dataset, "adam"), 4))
    state["optimizer"]["state"][1]["step"].fill_(step)
    with pytest.raises(CheckpointError, match=r"optimizer.state.1.step: expected 4, got"):
        run_state.restore(make_run(dataset, "adam"), serialize(state), "FILE")


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_run_with_any_schedule_resumes_with_the_same_bits(dataset, schedule):
    content = serialize(run_state.state(train(make_run(dataset, "sgd", schedule), 4)))
    again = make_run(dataset, "sgd", schedule)
    run_state.restore(again, content, "FILE")
    assert same_weights(train(again), train(make_run(dataset, "sgd", schedule)))


def test_a_run_resumes_with_the_other_engine(dataset):
    content = serialize(run_state.state(train(make_run(dataset, engine="document"), 4)))
    again = make_run(dataset, engine="autograd")
    run_state.restore(again, content, "FILE")
    assert same_weights(train(again), train(make_run(dataset, engine="document")))


@pytest.mark.parametrize("part", ["model", "optimizer", "schedule", "order"])
def test_every_part_of_the_state_is_needed(dataset, part):
    """With one part of another run the weights differ, so the tests above can fail."""
    saved = run_state.state(train(make_run(dataset, "adam"), 4))
    again = make_run(dataset, "adam")
    run_state._load(saved | {part: run_state.state(make_run(dataset, "adam", seed=5))[part]}, again)
    assert not same_weights(train(again), train(make_run(dataset, "adam")))


def test_random_generators_are_restored(dataset):
    def draw() -> list[float]:
        return [torch.rand(()).item(), random.random(), random.gauss(), np.random.rand(), np.random.standard_normal()]

    run = make_run(dataset)
    draw()  # generators of normal numbers make pairs, and keep the second number
    content = serialize(run_state.state(run))
    expected = draw()
    draw()
    run_state.restore(make_run(dataset), content, "FILE")
    assert draw() == expected


OTHER_SETTINGS: dict[str, tuple[Callable[[data.Dataset], TrainingRun], str]] = {
    "seed": (lambda d: make_run(d, seed=1), "seed: 0 in the checkpoint, 1 in this run"),
    "batch size": (lambda d: make_run(d, batch_size=20), "batch size: 16 in the checkpoint, 20 in this run"),
    "epochs": (lambda d: make_run(d, epochs=3), "epochs: 2 in the checkpoint, 3 in this run"),
    "optimizer": (lambda d: make_run(d, "adamw"), "optimizer: 'Adam' in the checkpoint, 'AdamW' in this run"),
    "schedule": (
        lambda d: make_run(d, schedule="cosine"),
        "schedule: 'OneCycleLR' in the checkpoint, 'CosineAnnealingLR' in this run",
    ),
    "architecture": (lambda d: make_run(d, classes=11), "dense2.weight 11x6"),
    "subgradient": (
        lambda d: make_run(d, subgradient=0.0),
        "derivative of ReLU at 0: 0.5 in the checkpoint, 0.0 in this run",
    ),
    "precision": (
        lambda d: make_run(d, dtype=torch.float64),
        "precision: 'float32' in the checkpoint, 'float64' in this run",
    ),
    "dataset": (lambda d: make_run(replace(d, name="kmnist")), "'kmnist' in this run"),
    "images": (lambda d: make_run(replace(d, train=replace(d.train, images=255 - d.train.images))), "SHA-256 of the"),
    "labels": (lambda d: make_run(replace(d, train=replace(d.train, labels=9 - d.train.labels))), "SHA-256 of the"),
}


@pytest.mark.parametrize("case", OTHER_SETTINGS)
def test_a_checkpoint_with_other_settings_is_refused_and_the_difference_is_named(dataset, case):
    content = serialize(run_state.state(train(make_run(dataset), 1)))
    make, message = OTHER_SETTINGS[case]
    with pytest.raises(SettingsMismatchError, match=re.escape(message)) as error:
        run_state.restore(make(dataset), content, "FILE")
    assert "FILE was saved by a run with other settings" in str(error.value)
    assert str(error.value).count(" in the checkpoint, ") == 1, "settings that are equal are not listed"
