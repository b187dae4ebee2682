"""Promise: an epoch uses the images it should, and the run ends with the average of the right weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import manualgrad as mg
from manualgrad import data
from manualgrad.training.epochs import EpochLayout
from manualgrad.training.hard_examples import UNSEEN, HardExampleSampler
from manualgrad.training.optimizers import make_lr_scheduler
from manualgrad.training.run import ENGINES, TrainingRun

FRACTIONS = st.lists(st.floats(0.001, 1), min_size=1, max_size=5).map(tuple)


@given(
    num_images=st.integers(1, 200), batch_size=st.integers(1, 70), num_epochs=st.integers(1, 6), fractions=FRACTIONS
)
def test_every_step_has_its_epoch_position_and_batch_size(num_images, batch_size, num_epochs, fractions):
    epochs = EpochLayout(num_images, batch_size, num_epochs, fractions)
    step = 0
    for epoch, size in enumerate(epochs.sizes):
        fraction = fractions[min(epoch, len(fractions) - 1)]
        assert size == max(1, round(fraction * num_images))
        batches = torch.arange(size).split(batch_size)
        for step_in_epoch, batch in enumerate(batches):
            assert epochs.epoch_of(step) == epoch
            assert epochs.step_in_epoch(step) == step_in_epoch
            assert epochs.batch_size_of(step) == len(batch)
            step += 1
        assert epochs.ends[epoch] == step
    assert (len(epochs.sizes), epochs.num_steps, epochs.step_in_epoch(step)) == (num_epochs, step, 0)


def test_unseen_images_are_sampled_first_and_then_those_with_the_lowest_label_probability():
    generator, sampler = torch.Generator().manual_seed(0), HardExampleSampler(10)
    first = sampler.sample(6, generator)
    assert len(set(first.tolist())) == 6, "all are unseen: any six"
    label_probs = torch.linspace(0.9, 0.4, 6)
    sampler.record(label_probs[:4])
    sampler.record(label_probs[4:])
    sampler.commit()
    second = sampler.sample(6, generator)
    unseen = set(range(10)) - set(first.tolist())
    assert set(second.tolist()) == unseen | set(first[4:].tolist())
    assert second.tolist() != sorted(second.tolist()), "in random order"
    assert sampler.label_probs[first].tolist() == label_probs.tolist()
    assert all(sampler.label_probs[index] == UNSEEN for index in unseen)


def test_all_images_come_in_the_order_that_the_seed_gives():
    sampler = HardExampleSampler(50)
    indices = sampler.sample(50, torch.Generator().manual_seed(7))
    assert torch.equal(indices, torch.randperm(50, generator=torch.Generator().manual_seed(7)))


def make_run(
    engine: str, average_last: int = 0, fractions: tuple[float, ...] = (1.0,), dtype=torch.float32
) -> TrainingRun:
    torch.manual_seed(0)
    dataset = data.bundled_sample().limited(64).center_crop(20)
    model = mg.DocumentCNN(image_size=20, hidden=(), dtype=dtype)
    optimizer, epochs = torch.optim.SGD(model.parameters(), lr=0.1), EpochLayout(64, 16, 3, fractions)
    scheduler = make_lr_scheduler("linear", optimizer, epochs.num_steps)
    return TrainingRun(
        model, optimizer, scheduler, dataset, epochs=epochs, seed=0, average_last=average_last, engine=engine
    )


def weights(run: TrainingRun) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in run.model.parameters()]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_ends_with_the_average_of_its_last_weights(engine):
    plain, averaging = make_run(engine, dtype=torch.float64), make_run(engine, average_last=4, dtype=torch.float64)
    weights_after_step = []
    for _ in range(plain.num_steps):
        assert plain.train_step() == averaging.train_step()
        weights_after_step.append(weights(plain))
        if not plain.is_finished:
            assert all(map(torch.equal, weights(averaging), weights_after_step[-1])), "only the last is averaged"
            if plain.step_in_epoch == 0:
                plain.begin_epoch()
                averaging.begin_epoch()
    for average, *last in zip(weights(averaging), *weights_after_step[-4:], strict=True):
        torch.testing.assert_close(average, sum(last) / 4, rtol=1e-14, atol=1e-15)


def test_both_engines_sample_the_same_images_and_end_with_the_same_bits():
    runs = [make_run(engine, average_last=3, fractions=(1.0, 0.5)) for engine in ENGINES]
    for run in runs:
        while not run.is_finished:
            run.train_step()
            if run.step_in_epoch == 0:
                run.begin_epoch()
    assert runs[0].num_steps == 4 + 2 + 2
    assert all(map(torch.equal, *map(weights, runs)))
    assert torch.equal(runs[0].sampler.label_probs, runs[1].sampler.label_probs)


def test_the_sampled_images_have_the_lowest_label_probabilities_when_they_were_used():
    """Compute each label probability with the weights of the step that used the image."""
    run = make_run("autograd", fractions=(1.0, 0.25))
    expected = torch.empty(64)
    indices = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    for batch in indices.split(16):
        x = (run.dataset.train.images[batch].float() - 255 * run.dataset.mean) / (255 * run.dataset.std)
        labels = run.dataset.train.labels[batch, None]
        expected[batch] = run.model.probabilities(x).gather(1, labels).squeeze(1).detach()
        run.train_step()
    run.begin_epoch()
    torch.testing.assert_close(run.sampler.label_probs, expected, rtol=1e-4, atol=1e-6)  # float32 rounding
    _, labels = run.batches.batch(run.step_in_epoch)
    hardest = expected.argsort()[:16]
    assert sorted(labels.tolist()) == sorted(run.dataset.train.labels[hardest].tolist())
    assert labels.numel() == 16
