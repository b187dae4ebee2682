"""Promise: an epoch takes the images that it should, and what is averaged is what was asked for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import manualgrad as mg
from manualgrad import data
from manualgrad.training.epochs import NEVER_SEEN, Choice, Epochs
from manualgrad.training.run import ENGINES, Run
from manualgrad.training.steps import step_sizes

SHARES = st.lists(st.floats(0.001, 1), min_size=1, max_size=5).map(tuple)


@given(images=st.integers(1, 200), batch_size=st.integers(1, 70), count=st.integers(1, 6), shares=SHARES)
def test_every_step_has_its_place(images, batch_size, count, shares):
    epochs = Epochs(images, batch_size, count, shares)
    step = 0
    for number, size in enumerate(epochs.sizes):
        share = shares[min(number, len(shares) - 1)]
        assert size == max(1, round(share * images))
        batches = torch.arange(size).split(batch_size)
        for place, batch in enumerate(batches):
            assert (epochs.epoch(step), epochs.place(step), epochs.batch(step)) == (number, place, len(batch))
            step += 1
        assert epochs.ends[number] == step
    assert (len(epochs.sizes), epochs.steps, epochs.place(step)) == (count, step, 0)


def test_the_least_understood_images_are_taken_and_those_never_seen_before_them():
    generator, choice = torch.Generator().manual_seed(0), Choice(10)
    first = choice.draw(6, generator)
    assert len(set(first.tolist())) == 6, "none was seen: any six"
    certain = torch.linspace(0.9, 0.4, 6)
    choice.saw(certain[:4])
    choice.saw(certain[4:])
    choice.note()
    second = choice.draw(6, generator)
    unseen = set(range(10)) - set(first.tolist())
    assert set(second.tolist()) == unseen | set(first[4:].tolist())
    assert second.tolist() != sorted(second.tolist()), "in random order"
    assert choice.before[first].tolist() == certain.tolist()
    assert all(choice.before[number] == NEVER_SEEN for number in unseen)


def test_all_images_come_in_the_order_that_the_seed_gives():
    choice = Choice(50)
    order = choice.draw(50, torch.Generator().manual_seed(7))
    assert torch.equal(order, torch.randperm(50, generator=torch.Generator().manual_seed(7)))


def begun(engine: str, averaged: int = 0, shares: tuple[float, ...] = (1.0,), dtype=torch.float32) -> Run:
    torch.manual_seed(0)
    dataset = data.bundled_sample().limited(64).middle(20)
    model = mg.DocumentCNN(image_size=20, hidden=(), dtype=dtype)
    optimizer, epochs = torch.optim.SGD(model.parameters(), lr=0.1), Epochs(64, 16, 3, shares)
    schedule = step_sizes("linear", optimizer, epochs.steps)
    return Run(model, optimizer, schedule, dataset, epochs=epochs, seed=0, averaged=averaged, engine=engine)


def weights(run: Run) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in run.model.parameters()]


@pytest.mark.parametrize("engine", ENGINES)
def test_the_run_ends_with_the_mean_of_its_last_weights(engine):
    plain, averaging = begun(engine, dtype=torch.float64), begun(engine, averaged=4, dtype=torch.float64)
    seen = []
    for _ in range(plain.steps):
        assert plain.take_step() == averaging.take_step()
        seen.append(weights(plain))
        if not plain.is_over:
            assert all(map(torch.equal, weights(averaging), seen[-1])), "only what it ends with is the mean"
            if plain.place == 0:
                plain.begin_epoch()
                averaging.begin_epoch()
    for mean, *last in zip(weights(averaging), *seen[-4:], strict=True):
        torch.testing.assert_close(mean, sum(last) / 4, rtol=1e-14, atol=1e-15)


def test_both_engines_choose_the_same_images_and_end_with_the_same_bits():
    runs = [begun(engine, averaged=3, shares=(1.0, 0.5)) for engine in ENGINES]
    for run in runs:
        while not run.is_over:
            run.take_step()
            if run.place == 0:
                run.begin_epoch()
    assert runs[0].steps == 4 + 2 + 2
    assert all(map(torch.equal, *map(weights, runs)))
    assert torch.equal(runs[0].choice.before, runs[1].choice.before)


def test_what_is_chosen_is_what_the_network_knows_least():
    """By a look at every image with the weights that it was seen with."""
    run = begun("autograd", shares=(1.0, 0.25))
    known = torch.empty(64)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    for chosen in order.split(16):
        x = (run.dataset.train.images[chosen].float() - 255 * run.dataset.mean) / (255 * run.dataset.std)
        labels = run.dataset.train.labels[chosen, None]
        known[chosen] = run.model.probabilities(x).gather(1, labels).squeeze(1).detach()
        run.take_step()
    run.begin_epoch()
    torch.testing.assert_close(run.choice.before, known, rtol=1e-4, atol=1e-6)  # float32, rounded in another order
    _, labels = next(run.batches)
    hardest = known.argsort()[:16]
    assert sorted(labels.tolist()) == sorted(run.dataset.train.labels[hardest].tolist())
    assert labels.numel() == 16
