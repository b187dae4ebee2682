"""Arguments of a training side by side: what is wrong with them, and the settings that they make."""

from __future__ import annotations

import math
from typing import Any

import torch

from compare.training.result import Settings
from manualgrad.data import Dataset
from manualgrad.training.optimizers import SCHEDULES

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def check_arguments(
    dataset: Any, seeds: Any, epochs: Any, batch_size: Any, learning_rate: Any, schedule: Any, dtype: Any,
    device: Any, subgradients: Any, limit: Any,
) -> tuple[Settings, Dataset]:  # fmt: skip
    """Check the arguments of ``compare_training``; return the settings and the data to train on.

    Raises:
        TypeError: ``dataset`` is not a Dataset, or a number has the wrong type.
        ValueError: an argument has a value that is not allowed.
    """
    if not isinstance(dataset, Dataset):
        raise TypeError(f"compare_training: dataset must be a manualgrad.data.Dataset, got {type(dataset).__name__}")
    seeds, subgradients = tuple(seeds), tuple(subgradients)
    for name, number, minimum in (
        ("epochs", epochs, 1),
        ("batch_size", batch_size, 1),
        *([("limit", limit, 1)] if limit is not None else []),
        *(("each of seeds", seed, 0) for seed in seeds),
    ):
        if not isinstance(number, int) or isinstance(number, bool):
            raise TypeError(f"compare_training: {name} must be an integer, got {number!r}")
        if number < minimum:
            raise ValueError(f"compare_training: {name} must be at least {minimum}, got {number}")
    device = torch.device(device)
    for is_wrong, message in (
        (not seeds, "seeds must contain at least one seed"),
        (len(set(seeds)) != len(seeds), f"seeds must differ from each other, got {seeds}"),
        (not 0 < learning_rate < math.inf, f"learning_rate must be a number above 0, got {learning_rate!r}"),
        (schedule not in SCHEDULES, f"schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}"),
        (dtype not in DTYPES, f"dtype must be one of {', '.join(str(d)[6:] for d in DTYPES)}, got {dtype}"),
        (not all(0 <= s <= 1 for s in subgradients), f"subgradients must lie in 0..1, got {subgradients}"),
        (len(set(subgradients)) != len(subgradients), f"subgradients must differ, got {subgradients}"),
        (device.type == "cuda" and not torch.cuda.is_available(), "device is cuda, but PyTorch finds no CUDA device"),
        (min(len(dataset.train), len(dataset.test)) < 1, "dataset must have training and test images"),
    ):
        if is_wrong:
            raise ValueError(f"compare_training: {message}")
    if limit is not None:
        dataset = dataset.limited(limit)
    steps = -(-len(dataset.train) // batch_size)
    settings = Settings(
        seeds, epochs, batch_size, learning_rate, schedule, dtype, str(device), subgradients, steps_per_epoch=steps
    )
    return settings, dataset.to(device)
