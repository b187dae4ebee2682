"""Benchmark of one training step: interleaved times of ours and native, and the peak memory of each."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

import manualgrad as mg
from compare.models import torchvision_models as models
from compare.speed.memory import PeakMemory, peak_memory

ROUNDS = 5


@dataclass(frozen=True)
class StepBenchmark:
    """Time and memory of one float32 training step.

    Attributes:
        ours_seconds: median time of ours.
        native_seconds: median time of native.
        ratio: median over the rounds of ours / native.
        ours_peak: memory beyond parameters and images; gradients are part of it.
        native_peak: the same of native.
        threads: number of threads of PyTorch.
    """

    ours_seconds: float
    native_seconds: float
    ratio: float
    ours_peak: PeakMemory
    native_peak: PeakMemory
    threads: int


def benchmark_training_step(name: str, options: models.ModelOptions, rounds: int = ROUNDS) -> StepBenchmark:
    """Time ``rounds`` steps of each model in turn, after one warm-up step of each; then measure peak memory."""
    native = models.make_native_model(name, 0, options)
    batch = models.random_batch(options, 0)
    ours, _ = models.convert_model(native, options)
    steps = (
        make_sgd_step(ours, mg.nn.SoftmaxCrossEntropyLoss(), batch),
        make_sgd_step(native, nn.CrossEntropyLoss(), batch),
    )
    seconds: tuple[list[float], list[float]] = ([], [])
    for round_number in range(rounds + 1):
        for step, times in zip(steps, seconds, strict=True):
            synchronize(options.device)
            start = time.perf_counter()
            step()
            synchronize(options.device)
            if round_number:  # round 0 is the warm-up
                times.append(time.perf_counter() - start)
    ratios = [a / b for a, b in zip(*seconds, strict=True)]
    peaks = [peak_memory(step, steps=3, device=options.device) for step in steps]
    medians = [statistics.median(values) for values in (*seconds, ratios)]
    return StepBenchmark(*medians, *peaks, torch.get_num_threads())


def synchronize(device: str) -> None:
    """Wait for the work of all streams of a CUDA device; work on the CPU is complete already."""
    if device == "cuda":
        torch.cuda.synchronize()


def make_sgd_step(model: nn.Module, loss: nn.Module, batch: models.Batch) -> Callable[[], None]:
    """Return a function that does one step of gradient descent and then frees the gradients."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

    def step() -> None:
        models.compute_loss(model, loss, batch).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
