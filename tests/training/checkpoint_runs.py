"""Short runs on the bundled sample, and comparisons of their weights."""

from __future__ import annotations

import torch

import manualgrad as mg
from manualgrad import data
from manualgrad.training.epochs import EpochLayout
from manualgrad.training.evaluation import EvalResult
from manualgrad.training.optimizers import OPTIMIZERS, make_lr_scheduler
from manualgrad.training.run import TrainingRun

NO_EVALUATION = EvalResult(torch.zeros(1).long(), torch.zeros(1).long(), 0.0)


def make_run(
    dataset: data.Dataset,
    optimizer="adam",
    schedule="one-cycle",
    engine="autograd",
    epochs=2,
    batch_size=16,
    seed=0,
    fractions=(1.0,),
    average_last=0,
    **model_options,
) -> TrainingRun:
    """Make a small run with 3 steps in an epoch; the last batch of an epoch is half as large."""
    torch.manual_seed(seed)
    model = mg.DocumentCNN(channels=(2,), kernel_size=5, hidden=(6,), **model_options)
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    epochs = EpochLayout(len(dataset.train), batch_size, epochs, fractions)
    scheduler = make_lr_scheduler(schedule, optimizer, epochs.num_steps)
    return TrainingRun(
        model, optimizer, scheduler, dataset, epochs=epochs, seed=seed, average_last=average_last, engine=engine
    )


def train(run: TrainingRun, until: int | None = None) -> TrainingRun:
    """Train up to step ``until``, or to the end."""
    while run.step < (run.num_steps if until is None else until):
        run.train_step()
        if run.step_in_epoch == 0:
            run.end_epoch(NO_EVALUATION)
    return run


def same_weights(a: TrainingRun, b: TrainingRun) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.model.parameters(), b.model.parameters(), strict=True))
