"""Training runs of a few steps on a CUDA device, or on Triton's interpreter."""

from __future__ import annotations

import functools
from dataclasses import replace
from functools import partial

import pytest
import torch

from manualgrad import DocumentCNN, data
from manualgrad.training import device_steps
from manualgrad.training.epochs import EpochLayout
from manualgrad.training.optimizers import GradientDescent, make_lr_scheduler
from manualgrad.training.run import TrainingRun
from tests.cuda.test_network import COARSE, tiles  # noqa: F401

bundled_sample = functools.cache(data.bundled_sample)  # it takes a third of a second to read
MOMENTUM = partial(torch.optim.SGD, momentum=0.9)


@pytest.fixture(name="cuda")
def cuda_device(tiles, kernel_device, monkeypatch) -> str:  # noqa: F811
    """The device of the kernels, with 3 steps in a graph and tiles that the interpreter computes in little time."""
    tiles["tiles"] = replace(COARSE, image_windows=64, positions=64)
    monkeypatch.setattr(device_steps, "STEPS_PER_GRAPH", 3)
    return kernel_device


def make_run(
    device: str = "cpu", optimizer=GradientDescent, *, num_images: int = 10, epochs: int = 1, shares=(1.0,),
    rate: float = 0.1, dtype: torch.dtype = torch.float32, **options,
) -> TrainingRun:  # fmt: skip
    """A run with batches of 4 images of 12×12 pixels."""
    torch.manual_seed(0)
    dataset = bundled_sample().limited(num_images).center_crop(12).to(device)
    model = DocumentCNN(image_size=12, channels=(3,), hidden=()).to(device, dtype)
    layout, sgd = EpochLayout(num_images, 4, epochs, shares), optimizer(model.parameters(), lr=rate)
    schedule = make_lr_scheduler("one-cycle", sgd, layout.num_steps)
    return TrainingRun(model, sgd, schedule, dataset, epochs=layout, seed=0, **options)


def finish(run: TrainingRun, at_most: int = 100) -> list:
    """Take the steps that are left; return the metrics of each call."""
    calls = []
    while not run.is_finished:
        calls.append(run.train_steps(at_most))
        if run.step_in_epoch == 0:
            run.begin_epoch()
    return calls


def weights(run: TrainingRun) -> list[torch.Tensor]:
    return [w.detach().cpu().clone() for w in run.model.parameters()]
