"""Promise: steps take the images in the order of the seed, and optimizers and schedules do what their names say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import manualgrad as mg
from manualgrad import data
from manualgrad.training import batches
from manualgrad.training.batches import minibatches, normalize
from manualgrad.training.epochs import EpochLayout
from manualgrad.training.optimizers import OPTIMIZERS, SCHEDULES, make_lr_scheduler
from manualgrad.training.run import ENGINES, TrainingRun


def make_run(digits: Path, engine: str) -> TrainingRun:
    torch.manual_seed(0)
    model = mg.DocumentCNN(channels=(2, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    dataset = data.load("fashion-mnist", digits).limited(32)
    return TrainingRun(model, optimizer, make_lr_scheduler("one-cycle", optimizer, 4), dataset,
               epochs=EpochLayout(32, batch_size=8, num_epochs=1), seed=0, engine=engine)  # fmt: skip


@pytest.mark.parametrize("engine", ENGINES)
def test_a_step_normalizes_the_uint8_images_in_the_order_of_the_seed(engine, digits, monkeypatch):
    inputs, run = [], make_run(digits, engine)
    assert run.dataset.train.images.dtype == torch.uint8
    compute_gradients = run.compute_gradients
    monkeypatch.setattr(run, "compute_gradients", lambda x, *rest: (inputs.append(x), compute_gradients(x, *rest))[1])
    for _ in range(4):
        run.train_step()
    indices = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    for x, images in zip(inputs, run.dataset.train.images[indices].split(8), strict=True):
        expected = (images.double() / 255 - run.dataset.mean) / run.dataset.std
        torch.testing.assert_close(x.double(), expected, rtol=1e-6, atol=1e-6)  # float32 has 24 bits


def test_the_warmup_step_changes_nothing(digits):
    for engine in ENGINES:
        warm, cold = make_run(digits, engine), make_run(digits, engine)
        seconds = warm.seconds
        warm.run_warmup_step()
        assert (warm.step, warm.seconds, warm.losses) == (0, seconds, [])
        assert [warm.train_step().loss for _ in range(4)] == [cold.train_step().loss for _ in range(4)]
        assert all(map(torch.equal, warm.model.parameters(), cold.model.parameters()))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_lowers_the_loss(name):
    sample = data.bundled_sample().limited(64)
    torch.manual_seed(0)
    model = mg.DocumentCNN()
    optimizer = OPTIMIZERS[name](model.parameters())
    x, labels = normalize(sample.train.images, sample), sample.train.labels
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = model.cost(x, labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_start_peak_and_end_at_their_rates(name):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.2)
    scheduler = make_lr_scheduler(name, optimizer, 100)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert max(rates) == pytest.approx(0.2)
    if name == "constant":
        assert set(rates) == {0.2}
    else:
        assert rates[-1] < 0.01 if name != "linear" else rates[-1] == pytest.approx(0.4 * 0.2)
        assert rates[0] == pytest.approx(0.2 if name == "cosine" else 0.2 / 25)


@pytest.mark.parametrize("num_steps", range(4, 16))
def test_a_short_linear_schedule_rises_and_falls(num_steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.2)
    scheduler, rates = make_lr_scheduler("linear", optimizer, num_steps), []
    for _ in range(num_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[0] == pytest.approx(0.2 / 25) and rates[-1] == pytest.approx(0.4 * 0.2)
    assert max(rates) <= 0.2 + 1e-12 and max(rates) > 0.15


def test_minibatches_have_every_image_in_the_given_order(monkeypatch):
    images = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1)
    dataset = replace(data.bundled_sample(), train=data.Split(images, torch.arange(10)))
    indices = torch.randperm(10, generator=torch.Generator().manual_seed(3))
    for gather_size, first in ((1024, 0), (8, 0), (1, 0), (8, 1)):
        monkeypatch.setattr(batches, "GATHER_SIZE", gather_size)
        yielded = list(minibatches(dataset, indices, 4, dtype=torch.float64, first=first))
        assert [len(labels) for _, labels in yielded] == [4, 4, 2][first:]
        assert torch.equal(torch.cat([labels for _, labels in yielded]), indices[4 * first :])
        for x, labels in yielded:
            assert torch.equal(x, normalize(images[labels], dataset, torch.float64))
