"""What one training step costs: seconds, ours and native in turn, and the most memory that each holds at once."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

import manualgrad as mg
from compare.models.networks import Batch, Shape, cost, native_model, our_model, random_batch
from compare.speed.memory import Peak, peak

ROUNDS = 5


@dataclass(frozen=True)
class Step:
    """One float32 training step: medians of seconds, the median of their ratios, the peaks of memory."""

    ours_seconds: float
    native_seconds: float
    ratio: float
    ours_peak: Peak
    native_peak: Peak
    threads: int


def training_step(name: str, shape: Shape, rounds: int = ROUNDS) -> Step:
    """Medians of ``rounds``. Memory is that beyond parameters and images; gradients are part of it."""
    native = native_model(name, 0)
    batch = random_batch(shape, 0)
    ours, _ = our_model(native, shape)
    steps = stepper(ours, mg.nn.SoftmaxCrossEntropyLoss(), batch), stepper(native, nn.CrossEntropyLoss(), batch)
    seconds: tuple[list[float], list[float]] = ([], [])
    for round_ in range(rounds + 1):
        for step, times in zip(steps, seconds, strict=True):
            start = time.perf_counter()
            step()
            if round_:  # the first warms up
                times.append(time.perf_counter() - start)
    ratios = [a / b for a, b in zip(*seconds, strict=True)]
    peaks = [peak(step, steps=3) for step in steps]
    return Step(*(statistics.median(each) for each in (*seconds, ratios)), *peaks, torch.get_num_threads())


def stepper(model: nn.Module, loss: nn.Module, batch: Batch) -> Callable[[], None]:
    """A step of gradient descent, after which no gradient is left."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

    def step() -> None:
        cost(model, loss, batch).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
